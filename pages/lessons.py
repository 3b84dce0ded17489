"""Lessons, one idea each. The address names the lesson and keeps its numbers: `?lesson=worth&removed=75`."""

import streamlit as st

from app import state
from app.lessons import lesson
from app.lessons.catalogue import LESSONS
from app.texts import text

name = state.chosen("lesson", LESSONS, "")
if name:
    numbered = list(LESSONS)
    place = numbered.index(name)
    lesson.draw(LESSONS[name], place + 1)
    st.divider()
    with st.container(horizontal=True, gap="large"):
        if place + 1 < len(numbered):
            following = numbered[place + 1]
            st.page_link(
                state.page("lessons"),
                label=text("lessons.next", title=LESSONS[following].title),
                icon=":material/arrow_forward:",
                query_params={"lesson": following},
                width="content",
            )
        st.page_link(state.page("lessons"), label=text("lessons.all"), icon=":material/school:", width="content")
else:
    st.title(text("lessons.title"), anchor=False)
    st.markdown(text("lessons.about"))
    for place, (name, one) in enumerate(LESSONS.items(), start=1):
        with st.container(border=True):
            st.page_link(
                state.page("lessons"),
                label=f"**{place}. {one.title}**",
                icon=":material/school:",
                query_params={"lesson": name},
            )
            st.markdown(one.idea)
