"""Runs and measurements as data frames; no Streamlit."""
