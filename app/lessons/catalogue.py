"""All lessons in their order, by their word in the address."""

from app.lessons import downhill, looking_ahead, making_up, still_looking, which_stay, worth
from app.lessons.lesson import Lesson

LESSONS: dict[str, Lesson] = {
    module.LESSON.name: module.LESSON for module in (worth, making_up, looking_ahead, downhill, which_stay, still_looking)
}
