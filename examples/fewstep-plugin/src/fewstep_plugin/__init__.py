"""Extensions of fewstep, each in its own file."""
