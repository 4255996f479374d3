"""The front door: `load` a checkpoint, get an `Assistant`, ask it about images and videos."""

from filmstrip.api.answer import Answer
from filmstrip.api.assistant import Assistant
from filmstrip.api.chat import Chat
from filmstrip.api.load import OpenedModel, load, open_model
from filmstrip.api.request import Request
from filmstrip.api.stream import AnswerStream

__all__ = ["Answer", "AnswerStream", "Assistant", "Chat", "OpenedModel", "Request", "load", "open_model"]
