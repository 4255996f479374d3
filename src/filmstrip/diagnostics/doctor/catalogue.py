"""Everything the doctor can find, as data: how bad it is, what it means, what to do."""

from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[str, ...] = get_args(Severity)


@dataclass(frozen=True)
class Kind:
    """One kind of finding. The texts are complete sentences."""

    severity: Severity
    meaning: str
    remedy: str


def _error(meaning: str, remedy: str) -> Kind:
    return Kind("error", meaning, remedy)


def _warning(meaning: str, remedy: str) -> Kind:
    return Kind("warning", meaning, remedy)


def _note(meaning: str, remedy: str = "Nothing needs to be done.") -> Kind:
    return Kind("note", meaning, remedy)


_AGAIN = "Download the file again and compare its size with the one on the hub."
_FILES = {
    "weights-missing": _error(
        "There are no weights to load.",
        "Download the weights, or point to the directory that holds them.",
    ),
    "lfs-pointer": _error(
        "The file is the small text that Git leaves in place of a large file; its content was never fetched.",
        "Run `git lfs pull` in the clone, or download the file from the hub.",
    ),
    "link-outside": _error(
        "This is a symbolic link that leads out of the checkpoint's directory. It was not followed.",
        "Put the file or directory itself there, or name a tower's directory with its option; a checkpoint from "
        "elsewhere with such a link is not to be trusted.",
    ),
    "file-damaged": _error("No tensor of this file can be read.", _AGAIN),
    "file-truncated": _error("The end of the file is missing: a download or a copy was interrupted.", _AGAIN),
    "offsets-wrong": _error(
        "The header places tensors over each other or leaves bytes unused, so their values cannot be trusted.",
        "Write the file again with the safetensors library, or download it again.",
    ),
    "duplicate-key": _error(
        "The JSON names a key twice. Readers silently disagree about which one counts.",
        "Find out which of the two is right and write the file again.",
    ),
    "index-damaged": _error("Without its index the shards cannot be put together.", _AGAIN),
    "index-entry-outside": _error(
        "The index names something that is not a plain file of this directory. It was not opened.",
        "Do not trust this checkpoint; if you made it, keep the shards beside the index.",
    ),
    "shard-missing": _error(
        "The tensors of that file are not here.",
        "Download the missing file into the directory.",
    ),
    "tensor-not-in-shard": _error(
        "The index and the shards are not of one set: perhaps files of two conversions were mixed.",
        "Download index and shards together, or write the checkpoint again.",
    ),
    "tensor-misplaced": _error(
        "The shard holds a tensor that the index does not place there.",
        "Download index and shards together, or write the checkpoint again.",
    ),
    "tensor-in-two-shards": _error(
        "Two files hold a tensor of the same name; which one counts depends on the reader.",
        "Remove one of the two and write the index again.",
    ),
    "file-not-indexed": _warning(
        "The index does not name the file, so nothing of it is loaded.",
        "Remove it if it is a leftover; if not, the index is of another checkpoint.",
    ),
    "weights-twice": _warning(
        "Two sets of weights lie side by side, and another program may read the other one.",
        "Remove the set that you do not mean.",
    ),
    "values-unreadable": _error("The header is fine, but the values cannot be read.", _AGAIN),
}

_NAMES = {
    "layout-unknown": _error(
        "None of the names belongs to a layout known here; this is another kind of model or an unknown conversion.",
        "Convert the checkpoint to a published layout.",
    ),
    "family-differs": _error(
        "config.json and the weights are of two different models.",
        "Use the config.json that belongs to the weights.",
    ),
    "layouts-mixed": _error(
        "Part of the names follows one published layout, part another: a conversion stopped half-way.",
        "Convert again from the source, or rename the foreign part.",
    ),
    "tensors-foreign": _error(
        "These names belong to no component of the model in any layout known here.",
        "Remove the tensors if they are leftovers of training (an optimizer, an adapter), or merge the adapter first.",
    ),
    "tensors-missing": _error(
        "Parameters of the model have no values; a program that loads this anyway leaves them random.",
        "Convert again, or make config.json describe what the files hold.",
    ),
    "tensors-unexpected": _error(
        "The files hold parameters that the model of config.json does not have; they would silently not load.",
        "Compare the layer counts and flags in config.json with the training run.",
    ),
    "parameter-stored-twice": _error(
        "Two tensors claim to be the same parameter; which one counts depends on the reader.",
        "Remove one of the two.",
    ),
    "shape-differs": _error(
        "The tensor does not fit the model of config.json.",
        "Compare the sizes in config.json with the training run.",
    ),
    "position-table": _error(
        "The vision tower's position table has another grid than image_size and patch_size make.",
        "Correct image_size or patch_size in vision_config; do not resize the table.",
    ),
    "dtype-unsupported": _error(
        "Weights are stored in a dtype that is not a floating-point one known here, such as quantised integers.",
        "Use the unquantised checkpoint.",
    ),
    "dtypes-mixed": _warning(
        "Tensors are stored in several dtypes; the model is built in one that holds them all exactly.",
        "Write the checkpoint in one dtype, or choose one with --dtype.",
    ),
    "dtype-differs": _warning(
        "Programs that follow config.json convert on loading, and then compute slightly other values.",
        "Set torch_dtype in config.json to what is stored.",
    ),
    "temporal-missing": _error(
        "The configuration asks for temporal attention, but its weights are not in the files.",
        "Add them from the original release, or load with the preset transformers.",
    ),
    "temporal-unused": _note(
        "The files hold temporal attention of the original release; the configuration leaves it out, as transformers "
        "does.",
        "Load with the preset original to use it.",
    ),
    "head-missing": _note(
        "The text tower is a decoder without a head: it gives hidden states and cannot generate.",
        "Nothing needs to be done for the decoder alone; loading, converting and assembling want the checkpoint of the "
        "whole LlamaForCausalLM.",
    ),
    "tower-elsewhere": _note(
        "The original release keeps its vision towers in repositories of their own; this one was not examined.",
        "Check its repository too, or give its directory with an option of the tower's name.",
    ),
    "tensors-left-out": _note("These tensors are known and are not loaded."),
}

_SETTINGS = {
    "config-missing": _error("Nothing says what model this is.", "Download config.json from the same place."),
    "config-damaged": _error("The file cannot be read.", "Download it again, or correct it in an editor."),
    "config-unsupported": _error(
        "The configuration describes a model that cannot be built as it says.",
        "Correct the value, or load the checkpoint with the program it was made for.",
    ),
    "processor-unusable": _error(
        "Pixels cannot be prepared as the files ask.",
        "Correct the processor's file; compare crop_size with image_size of config.json.",
    ),
    "generation-unusable": _error("The file sets something that cannot be used.", "Correct the value."),
    "reader-refuses": _error("The checkpoint does not load.", "Correct what the message names."),
    "processor-differs": _warning(
        "Other programs prepare pixels or count placeholders by the processor's files, and then run another model or "
        "fail; here config.json and the preset decide.",
        "Make the processor's files agree with config.json.",
    ),
    "sequence-length": _warning(
        "config.json states a number of visual tokens that the towers do not make. transformers before 4.45 used it.",
        "Set it to the number the towers make.",
    ),
    "vocabulary-stated-twice": _warning(
        "config.json states two sizes of the vocabulary.",
        "Make vocab_size at the top level and in text_config equal.",
    ),
    "tie-stated-twice": _warning(
        "config.json says at two places whether the head is tied to the embeddings, and differently; transformers 5 "
        "goes by the top level, older releases by text_config.",
        "Keep tie_word_embeddings at one place.",
    ),
    "special-ids-disagree": _warning(
        "Files disagree about a special token. Generation may not stop, or padding may be read as text.",
        "Make generation_config.json, config.json and the tokenizer agree.",
    ),
    "inner-dtype": _note("The dtype of a section is ignored; the outer one counts."),
    "patch-remainder": _warning(
        "Patches do not cover the image: a strip of pixels at the right and lower edge is never seen.",
        "Check image_size and patch_size of vision_config.",
    ),
    "setting-ignored": _note("The setting has no effect here."),
    "reader-warns": _warning("The checkpoint loads, with this warning.", "Correct what the message names."),
}

_VOCABULARY = {
    "tokenizer-missing": _error(
        "Text cannot become tokens.", "Download tokenizer.json, or LLaMA's tokenizer.model, from the same place."
    ),
    "tokenizer-unusable": _error("Text cannot become tokens.", "Download the tokenizer's files again."),
    "vocabulary-too-small": _error(
        "Tokens past the last row of the embedding cannot be looked up: the first prompt that holds one fails.",
        "Extend the embedding and the head, or use the tokenizer that the model was trained with.",
    ),
    "placeholder-outside-vocabulary": _error(
        "Programs that look placeholders up before they replace them, as transformers does, fail at the first prompt.",
        "Correct the id in config.json, or extend the embedding and the head.",
    ),
    "placeholder-missing": _error(
        "The tokenizer has no token of that id, so that no prompt can hold the medium.",
        "Add the placeholder to the tokenizer, or correct the id in config.json.",
    ),
    "placeholder-is-another-token": _error(
        "The id of config.json and the token of the tokenizer do not belong together: visual tokens would replace "
        "ordinary text or the other kind of medium.",
        "Correct the ids in config.json; LLaVA-NeXT-Video has image and video the other way round than Video-LLaVA.",
    ),
    "template-fails": _warning(
        "The checkpoint's chat template gives no usable prompt: it fails, or leaves the medium out.",
        "Correct the template, or choose a prompt with --prompt.",
    ),
    "special-id-outside-vocabulary": _error(
        "The model can neither read nor emit the token.",
        "Correct the id in the file named.",
    ),
    "rows-without-token": _note(
        "The vocabulary is padded to a round number. Rows that no token uses are often random, and their ids mean "
        "nothing."
    ),
}

_VALUES = {
    "not-finite": _error(
        "The model computes NaN as soon as the value is used: training diverged, or a conversion overflowed float16.",
        "Take an earlier checkpoint, or convert again from a dtype with more range.",
    ),
    "all-zero": _error(
        "The tensor was allocated and never filled, as an interrupted conversion or a sharded save leaves it.",
        "Write or download the checkpoint again.",
    ),
    "starts-at-zero": _note("A branch whose output is zero adds nothing: it was put in and not trained."),
    "constant": _warning(
        "All values of the matrix are one number; it was initialised and never trained or filled.",
        "Write or download the checkpoint again.",
    ),
    "zero-block": _warning(
        "A long run of zeros inside a tensor is what an interrupted download into a preallocated file leaves.",
        "Download the file again and compare its checksum with the hub's.",
    ),
    "tied-differ": _error(
        "config.json makes them one parameter, but the files hold two; half of the programs load one, half the other.",
        "Remove the wrong one, or correct tie_word_embeddings (shared_towers) in config.json.",
    ),
    "towers-identical": _warning(
        "The video tower is a copy of the image tower, class token included: a conversion read one of them twice.",
        "Convert again; in the published checkpoint the two class embeddings differ.",
    ),
    "towers-assembled": _note(
        "The video tower is a copy of the image tower, as it was assembled (config.json records it); they part when "
        "trained."
    ),
    "towers-alike": _note(
        "The towers share weights. In the published checkpoint they share most; if they share a few only, a conversion "
        "may have read some of one tower into the other.",
        "Nothing needs to be done if most are equal; otherwise compare the towers with their source, or convert again.",
    ),
    "tensors-identical": _warning(
        "Tensors that training never makes equal hold the same bytes: one was written in place of the other.",
        "Convert again, unless layers were copied on purpose (depth up-scaling).",
    ),
    "copies-expected": _note("The same values are stored more than once; that costs disk, nothing else."),
}

CATALOGUE: dict[str, Kind] = _FILES | _NAMES | _SETTINGS | _VOCABULARY | _VALUES
