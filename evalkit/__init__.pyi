from evalkit.api import compare as compare
from evalkit.api import leaderboard as leaderboard
from evalkit.api import load as load
from evalkit.api import run as run

__version__: str
