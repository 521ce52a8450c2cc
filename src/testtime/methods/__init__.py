"""The methods of the field: one paper, one file, one final class."""

from testtime.methods.actmad import ActMAD
from testtime.methods.adacontrast import AdaContrast
from testtime.methods.adanpc import AdaNPC
from testtime.methods.atlas import ATLAS
from testtime.methods.bn_adapt import BNAdapt
from testtime.methods.cafa import CAFA
from testtime.methods.clust3 import ClusT3
from testtime.methods.cmf import CMF
from testtime.methods.core import Core
from testtime.methods.cotta import CoTTA
from testtime.methods.deyo import DeYO
from testtime.methods.eata import EATA
from testtime.methods.ecotta import EcoTTA
from testtime.methods.eta import ETA
from testtime.methods.itta import ITTA
from testtime.methods.lame import LAME
from testtime.methods.memo import MEMO
from testtime.methods.meta_dmoe import MetaDMoE
from testtime.methods.nc_ttt import NCTTT
from testtime.methods.nhl import NHL
from testtime.methods.note import NOTE
from testtime.methods.ostta import OSTTA
from testtime.methods.paf_kip import PAFKIP
from testtime.methods.petal import PETAL
from testtime.methods.pl import PL
from testtime.methods.rmt import RMT
from testtime.methods.roid import ROID
from testtime.methods.rotta import RoTTA
from testtime.methods.rpl import RPL
from testtime.methods.s4t import S4T
from testtime.methods.santa import SANTA
from testtime.methods.sar import SAR
from testtime.methods.shot_im import SHOTIM
from testtime.methods.sotta import SoTTA
from testtime.methods.source import Source
from testtime.methods.stamp import STAMP
from testtime.methods.t3a import T3A
from testtime.methods.tent import Tent
from testtime.methods.tipi import TIPI
from testtime.methods.ttt import TTT
from testtime.methods.ttt_flow import TTTFlow
from testtime.methods.ttt_mae import TTTMAE
from testtime.methods.ttt_plus_plus import TTTPlusPlus
from testtime.methods.unient import UniEnt
from testtime.methods.unient_plus import UniEntPlus
from testtime.methods.vdp import VDP
from testtime.methods.vida import ViDA

__all__ = [
    "ATLAS",
    "CAFA",
    "CMF",
    "EATA",
    "ETA",
    "ITTA",
    "LAME",
    "MEMO",
    "NCTTT",
    "NHL",
    "NOTE",
    "OSTTA",
    "PAFKIP",
    "PETAL",
    "PL",
    "RMT",
    "ROID",
    "RPL",
    "S4T",
    "SANTA",
    "SAR",
    "SHOTIM",
    "STAMP",
    "T3A",
    "TIPI",
    "TTT",
    "TTTMAE",
    "VDP",
    "ActMAD",
    "AdaContrast",
    "AdaNPC",
    "BNAdapt",
    "ClusT3",
    "CoTTA",
    "Core",
    "DeYO",
    "EcoTTA",
    "MetaDMoE",
    "RoTTA",
    "SoTTA",
    "Source",
    "TTTFlow",
    "TTTPlusPlus",
    "Tent",
    "UniEnt",
    "UniEntPlus",
    "ViDA",
]
