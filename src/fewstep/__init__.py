"""fewstep: few-step generative objectives, compared fairly on one shared backbone."""

__version__ = "0.1.0"
