"""Frames to figures; no Streamlit. Notebooks use them too."""
