"""Lessons, one idea each. The address names the lesson and keeps its numbers: `?lesson=worth&removed=75`."""

import streamlit as st

from app import state
from app.lessons import lesson
from app.lessons.catalogue import LESSONS

name = state.chosen("lesson", LESSONS, "")
if name:
    numbered = list(LESSONS)
    place = numbered.index(name)
    lesson.draw(LESSONS[name], name, place + 1)
    st.divider()
    with st.container(horizontal=True, gap="large"):
        if place + 1 < len(numbered):
            following = numbered[place + 1]
            st.page_link(
                state.page("lessons"),
                label=f"Next: {LESSONS[following].title}",
                icon=":material/arrow_forward:",
                query_params={"lesson": following},
                width="content",
            )
        st.page_link(state.page("lessons"), label="All lessons", icon=":material/school:", width="content")
else:
    st.title("What happens inside when a network is pruned?", anchor=False)
    st.markdown("Lessons of ten minutes. Each has one idea and one thing to move, and computes its numbers while you watch.")
    for place, (name, one) in enumerate(LESSONS.items(), start=1):
        with st.container(border=True):
            st.page_link(
                state.page("lessons"),
                label=f"**{place}. {one.title}**",
                icon=":material/school:",
                query_params={"lesson": name},
            )
            st.markdown(one.idea)
