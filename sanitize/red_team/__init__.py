"""Red team: plant a known backdoor and register the suspect as any other would arrive; the truth is kept apart."""

from sanitize.red_team.request import AttackRequest
from sanitize.red_team.team import Planted, RedTeam

__all__ = ["AttackRequest", "Planted", "RedTeam"]
