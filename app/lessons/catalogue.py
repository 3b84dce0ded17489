"""All lessons in their order, by their word in the address."""

from app.lessons import downhill, looking_ahead, making_up, still_looking, which_stay, worth
from app.lessons.lesson import Lesson

LESSONS: dict[str, Lesson] = {
    "worth": worth.LESSON,
    "others": making_up.LESSON,
    "ahead": looking_ahead.LESSON,
    "downhill": downhill.LESSON,
    "which": which_stay.LESSON,
    "looks": still_looking.LESSON,
}
