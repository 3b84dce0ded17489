"""The interface: background jobs, charts and Streamlit parts. No numerics; everything shown is read from a run store."""
