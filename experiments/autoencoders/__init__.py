"""Images to latents and back: one file per library."""

from fewstep.experiments.autoencoders.base import AUTOENCODERS as AUTOENCODERS
from fewstep.experiments.autoencoders.base import Autoencoder as Autoencoder
from fewstep.experiments.autoencoders.base import AutoencoderEntry as AutoencoderEntry
from fewstep.experiments.autoencoders.base import AutoencoderNetwork as AutoencoderNetwork
from fewstep.experiments.autoencoders.base import entry_of as entry_of
from fewstep.experiments.autoencoders.diffusers import Diffusers as Diffusers
