"""Control: policies learnt from logged transitions, their uncertainty, and environments."""

from graftwork.domains.control._acting import Actor as Actor
from graftwork.domains.control._acting import actor as actor
from graftwork.domains.control._acting import best_action as best_action
from graftwork.domains.control._behaviour import BehaviourModel as BehaviourModel
from graftwork.domains.control._behaviour import behaviour_losses as behaviour_losses
from graftwork.domains.control._critics import CriticConfig as CriticConfig
from graftwork.domains.control._critics import Critics as Critics
from graftwork.domains.control._critics import candidate_moments as candidate_moments
from graftwork.domains.control._critics import masks_of as masks_of
from graftwork.domains.control._critics import moments as moments
from graftwork.domains.control._data import OfflineDataset as OfflineDataset
from graftwork.domains.control._data import from_log as from_log
from graftwork.domains.control._draws import Draws as Draws
from graftwork.domains.control._environment import SCORES as SCORES
from graftwork.domains.control._environment import Rollouts as Rollouts
from graftwork.domains.control._environment import make_environment as make_environment
from graftwork.domains.control._environment import normalised as normalised
from graftwork.domains.control._environment import rollout as rollout
from graftwork.domains.control._environment import write_video as write_video
from graftwork.domains.control._inspect import Imitation as Imitation
from graftwork.domains.control._inspect import OffPolicy as OffPolicy
from graftwork.domains.control._inspect import separation as separation
from graftwork.domains.control._inspect import uncertainty as uncertainty
from graftwork.domains.control._losses import Weighting as Weighting
from graftwork.domains.control._losses import actor_losses as actor_losses
from graftwork.domains.control._losses import bellman_target as bellman_target
from graftwork.domains.control._losses import cloning as cloning
from graftwork.domains.control._losses import critic_losses as critic_losses
from graftwork.domains.control._losses import mixed_minimum as mixed_minimum
from graftwork.domains.control._losses import pre_tanh as pre_tanh
from graftwork.domains.control._losses import uncertainty_weights as uncertainty_weights
from graftwork.domains.control._outcome import PolicyOutcome as PolicyOutcome
from graftwork.domains.control._outcome import load_critics as load_critics
from graftwork.domains.control._outcome import save_critics as save_critics
from graftwork.domains.control._readers import from_episodes as from_episodes
from graftwork.domains.control._readers import read_log as read_log
from graftwork.domains.control._readers import read_minari as read_minari
from graftwork.domains.control._recipe import PolicyRun as PolicyRun
from graftwork.domains.control._recipe import policy_signature as policy_signature
from graftwork.domains.control._recipe import train_policy as train_policy
from graftwork.domains.control._stream import ReplayStream as ReplayStream
from graftwork.domains.control._uwac import ActorCritic as ActorCritic
from graftwork.domains.control._uwac import ActorCriticConfig as ActorCriticConfig
from graftwork.domains.control._uwac import bear as bear

__all__ = [
    "SCORES",
    "Actor",
    "ActorCritic",
    "ActorCriticConfig",
    "BehaviourModel",
    "CriticConfig",
    "Critics",
    "Draws",
    "Imitation",
    "OffPolicy",
    "OfflineDataset",
    "PolicyOutcome",
    "PolicyRun",
    "ReplayStream",
    "Rollouts",
    "Weighting",
    "actor",
    "actor_losses",
    "bear",
    "behaviour_losses",
    "bellman_target",
    "best_action",
    "candidate_moments",
    "cloning",
    "critic_losses",
    "from_episodes",
    "from_log",
    "load_critics",
    "make_environment",
    "masks_of",
    "mixed_minimum",
    "moments",
    "normalised",
    "policy_signature",
    "pre_tanh",
    "read_log",
    "read_minari",
    "rollout",
    "save_critics",
    "separation",
    "train_policy",
    "uncertainty",
    "uncertainty_weights",
    "write_video",
]
