"""`filmstrip parity` names planted faults where they are, and raises no false alarm."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import filmstrip.diagnostics.parity.side as side_module
from filmstrip.config import ModelConfig
from filmstrip.diagnostics.parity.report import ParityReport
from filmstrip.diagnostics.parity.run import ParityOptions, compare_models
from filmstrip.errors import CheckpointError
from filmstrip.media import transform
from filmstrip.media.clip import Clip
from filmstrip.models import decoder
from filmstrip.testing.original import write_original_checkpoint
from filmstrip.testing.tiny import DiskLayout, tiny_hf_config, tiny_sister_config, write_tiny_checkpoint
from tests.e2e.helpers import succeed

pytest.importorskip("transformers", reason="transformers is not installed")

FEW = ParityOptions(new_tokens=4)
CONFIG = {"text_num_key_value_heads": 4}  # queries and keys of one shape, so that their weights can be exchanged
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("good")
    write_tiny_checkpoint(directory, tiny_hf_config(**CONFIG), seed=4)
    return directory


@pytest.fixture
def faulty(good: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy to plant a fault in."""
    yield shutil.copytree(good, tmp_path / "faulty")


def edit_config(directory: Path, change: Callable[[dict[str, Any]], object], name: str = "config.json") -> None:
    content = json.loads((directory / name).read_text())
    change(content)
    (directory / name).write_text(json.dumps(content))


def edit_weights(directory: Path, change: Callable[[Tensors], object]) -> None:
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, directory / "model.safetensors")


def compare(model: Path, against: Path | str = "transformers", **settings: Any) -> ParityReport:
    return compare_models(str(model), str(against), replace(FEW, **settings))


def assert_first(report: ParityReport, site: str, module: str, *hints: str) -> None:
    """The first fault is at `site` and in `module`, each of `hints` is in one of its lines, all before it is clean."""
    assert report.exit_code == 1
    fault = report.faults[0]
    assert (fault.step.site, fault.module) == (site, module)
    for hint in hints:
        assert any(hint in line for line in fault.hints), fault.hints
    assert {step.verdict for step in report.steps[: fault.step.number - 1]} <= {"equal", "rounding"}
    assert fault.module in report.verdict
    json.dumps(report.to_dict(), allow_nan=False)


def assert_no_alarm(report: ParityReport) -> None:
    assert report.exit_code == 0, report.verdict
    assert {step.verdict for step in report.steps} <= {"equal", "rounding"}
    sites = {step.site for step in report.steps}
    assert {"pixels.images", "pixels.videos", "ids.0", "ids.1", "tokens.0", "tokens.1", "logits", "embeddings"} <= sites
    assert {"image_tower.selected", "video_tower.selected", "projector.image", "projector.video"} <= sites


def only_fault(report: ParityReport) -> None:
    """Nothing but the first fault is introduced: everything after it is inherited or untouched."""
    assert len(report.faults) == 1, [fault.module for fault in report.faults]


# --- no false alarm ---


@pytest.mark.parametrize("layout", ["A", "B", "C", "D"])
def test_no_alarm_in_any_layout(tmp_path: Path, layout: DiskLayout) -> None:
    write_tiny_checkpoint(tmp_path, layout=layout, seed=len(layout))
    report = compare(tmp_path)
    assert_no_alarm(report)
    assert {step.site for step in report.steps if step.verdict == "rounding"} <= {"pixels.videos"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_no_alarm_in_half_precision(good: Path, dtype: str) -> None:
    assert_no_alarm(compare(good, dtype=dtype))


def test_no_alarm_for_the_embedded_model() -> None:
    report = compare_models("tiny", "transformers", ParityOptions())
    assert_no_alarm(report)
    assert report.texts[0][0] == report.texts[0][1] != ""


@pytest.mark.parametrize(
    "overrides",
    [
        {"text_rope_scaling": {"rope_type": "linear", "factor": 4.0}, "tie_word_embeddings": True},
        {
            "text_rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            "vision_feature_layer": [-2, -4],
            "vision_feature_select_strategy": "full",
        },
    ],
    ids=["linear, tied", "llama3, two layers, full"],
)
def test_no_alarm_for_other_configurations(tmp_path: Path, overrides: dict[str, Any]) -> None:
    write_tiny_checkpoint(tmp_path, tiny_hf_config(**overrides), processor="nested")
    assert_no_alarm(compare(tmp_path))


def test_a_reference_that_refuses_its_own_inputs(tmp_path: Path) -> None:
    """Without `processor_config.json` transformers' processor drops the class token that its model keeps."""
    write_tiny_checkpoint(tmp_path, tiny_hf_config(vision_feature_select_strategy="full"))
    report = compare(tmp_path)
    assert_first(report, "ids.0", "ids.0", "5 image placeholders here and 4 in the reference")
    only_fault(report)
    assert any("transformers refuses these inputs" in note for note in report.notes)
    assert {step.verdict for step in report.steps if step.stage.endswith("tower")} == {"equal"}


def test_dynamic_scaling_is_compared_without_padding(tmp_path: Path) -> None:
    """transformers gives a batch the base of its longest row, ours each row its own: a difference by design."""
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    write_tiny_checkpoint(tmp_path, tiny_hf_config(text_rope_scaling=scaling, text_max_position_embeddings=24))
    report = compare(tmp_path)
    assert report.exit_code == 0
    assert [step.site for step in report.steps if step.site.startswith("ids")] == ["ids.0"]


def test_no_alarm_between_layouts_of_one_model(tmp_path: Path) -> None:
    for layout in ("A", "C"):
        write_tiny_checkpoint(tmp_path / layout, layout=layout)  # type: ignore[arg-type]
    report = compare(tmp_path / "A", tmp_path / "C")
    assert_no_alarm(report)
    assert report.verdict.startswith("equal")
    assert not report.double_run  # equal to the last bit: nothing to tell rounding from


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_kernel_is_rounding(good: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written-out attention against the fused kernel: not equal in any layer, but float64 shows the same equation."""
    load = side_module.OurSide._load

    def load_eager(self: side_module.OurSide) -> Any:
        model = load(self)
        model.set_attention("eager")
        return model

    monkeypatch.setattr(side_module.OurSide, "_load", load_eager)
    report = compare(good, dtype=dtype)
    assert_no_alarm(report)
    assert report.double_run
    logits = next(step for step in report.steps if step.site == "logits")
    assert logits.total is not None and logits.total_double is not None
    assert logits.total.max_abs > 0
    assert logits.total_double.relative < 1e-9 < logits.total.relative


# --- planted in a copy of the checkpoint ---


def test_swapped_query_and_key_weights(good: Path, faulty: Path) -> None:
    block = "language_model.model.layers.2.self_attn"

    def swap(state: Tensors) -> None:
        query, key = f"{block}.q_proj.weight", f"{block}.k_proj.weight"
        state[query], state[key] = state[key], state[query]

    edit_weights(faulty, swap)
    report = compare(faulty, good)
    module = "text_tower.blocks.2.attention.q_proj"
    assert_first(report, "text_tower.hidden_states.3", module, "equals the reference's k_proj.weight")
    only_fault(report)


def test_swapped_weights_in_a_tower(good: Path, faulty: Path) -> None:
    block = "video_tower.vision_model.encoder.layers.1.self_attn"

    def swap(state: Tensors) -> None:
        for suffix in ("weight", "bias"):
            query, key = f"{block}.q_proj.{suffix}", f"{block}.k_proj.{suffix}"
            state[query], state[key] = state[key], state[query]

    edit_weights(faulty, swap)
    report = compare(faulty, good)
    module = "video_tower.blocks.1.attention.q_proj"
    assert_first(report, "video_tower.hidden_states.2", module, "equals the reference's k_proj.bias")
    only_fault(report)


def test_a_class_token_that_was_lost(good: Path, faulty: Path) -> None:
    edit_weights(faulty, lambda state: state["image_tower.vision_model.embeddings.class_embedding"].zero_())
    report = compare(faulty, good)
    assert_first(report, "image_tower.embeddings", "image_tower.embeddings", "class_embedding is all zero here")
    only_fault(report)
    assert report.faults[0].step.introduced is not None
    assert report.faults[0].step.introduced.index[:3] == (0, 0, 0)  # the class token is token 0


def test_a_class_token_that_is_dropped(good: Path, faulty: Path) -> None:
    """The strategy also decides how many placeholders there are, so the ids differ first."""
    edit_config(faulty, lambda config: config.update(vision_feature_select_strategy="full"))
    report = compare(good, faulty)
    assert_first(report, "ids.0", "ids.0", "image placeholders", "class token")
    assert "image_tower.selected" in {fault.step.site for fault in report.faults}
    hint = next(fault.hints for fault in report.faults if fault.step.site == "image_tower.selected")
    assert "hidden state 3 without its class token here, hidden state 3 with its class token" in hint[0]


@pytest.mark.parametrize("theta", [5e5, 10_010.0])
def test_wrong_rope_theta(good: Path, faulty: Path, theta: float) -> None:
    edit_config(faulty, lambda config: config["text_config"].update(rope_theta=theta))
    report = compare(faulty, good)
    assert_first(report, "text_tower.rotary.cos", "text_tower.rotary")
    if theta > 1e5:
        assert "rotary base (theta) 500000 here, 10000 in the reference" in report.faults[0].hints[0]
    assert {fault.step.site for fault in report.faults} == {"text_tower.rotary.cos", "text_tower.rotary.sin"}


@pytest.mark.parametrize(("layer", "state"), [(-3, 2), (-1, 4)])
def test_off_by_one_feature_layer(good: Path, faulty: Path, layer: int, state: int) -> None:
    edit_config(faulty, lambda config: config.update(vision_feature_layer=layer))
    report = compare(faulty, good)
    first = report.faults[0]
    assert (first.step.site, first.module) == ("image_tower.selected", "image_tower.selected")
    assert f"hidden states ({layer},) here and (-2,) in the reference" in first.hints[-1]
    if state < 4:  # the reference stops at the state it takes
        assert f"hidden state {state} without its class token here, hidden state 3 without" in first.hints[0]
    assert {fault.step.site for fault in report.faults} == {"image_tower.selected", "video_tower.selected"}


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3])
def test_wrong_layer_norm_epsilon(good: Path, faulty: Path, epsilon: float) -> None:
    edit_config(faulty, lambda config: config["vision_config"].update(layer_norm_eps=epsilon))
    report = compare(faulty, good)
    said = f"epsilon {epsilon:g} here, 1e-05 in the reference"
    assert_first(report, "image_tower.hidden_states.0", "image_tower.pre_norm", said)


def test_wrong_rms_norm_epsilon(good: Path, faulty: Path) -> None:
    edit_config(faulty, lambda config: config["text_config"].update(rms_norm_eps=1e-6))
    report = compare(faulty, good)
    module = "text_tower.blocks.0.attention_norm"
    assert_first(report, "text_tower.hidden_states.1", module, "epsilon 1e-06 here, 1e-05 in the reference")
    sites = {fault.step.site for fault in report.faults}
    assert {"text_tower.hidden_states.3", "text_tower.final_norm"} <= sites


def test_missing_temporal_attention(tmp_path: Path) -> None:
    """The converted checkpoint lost it; everything else is equal."""
    whole, converted = tmp_path / "original", tmp_path / "converted"
    write_tiny_checkpoint(whole, temporal_frames=8)
    shutil.copytree(whole, converted)
    edit_weights(converted, lambda state: [state.pop(name) for name in list(state) if ".temporal_" in name])
    report = compare(converted, whole, preset="original")
    module = "video_tower.blocks.0.temporal"
    assert_first(report, "video_tower.hidden_states.1", module, "only the reference has it")
    against_transformers = compare(whole, choices=(("temporal_attention", True),))
    assert_first(against_transformers, "video_tower.hidden_states.1", module, "only this model has it")
    assert_no_alarm(compare(whole))  # the preset transformers leaves it out, as transformers does


def test_a_reference_that_pads_on_the_right(faulty: Path) -> None:
    edit_config(faulty, lambda config: config.update(padding_side="right"), "tokenizer_config.json")
    report = compare(faulty)
    assert_first(report, "ids.1", "ids.1", "row 1 is padded on the left here and on the right in the reference")


def test_weights_that_were_rounded(good: Path, faulty: Path) -> None:
    """A difference in float32; none when both are cast to the type that one of them was stored in."""
    edit_weights(faulty, lambda state: state.update({name: tensor.bfloat16() for name, tensor in state.items()}))
    report = compare(faulty, good)
    assert report.exit_code == 1
    assert any("equal when rounded to bfloat16" in line for line in report.faults[0].hints)
    assert compare(faulty, good, dtype="bfloat16").exit_code == 0


# --- planted in the program ---


def test_swapped_rope_halves(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def turned_the_other_way(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos[:, None] + torch.cat([second, -first], dim=-1) * sin[:, None]

    monkeypatch.setattr(decoder, "apply_rotary", turned_the_other_way)
    report = compare(good)
    module = "text_tower.blocks.0.attention.rotated_query"
    assert_first(report, "text_tower.hidden_states.1", module, "the way pairs are turned differs")


def test_a_video_without_its_class_token(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelConfig, "keeps_class_token", lambda self, kind: False)
    report = compare(good)
    assert_first(report, "ids.0", "ids.0", "video placeholders")
    assert {"ids.0", "video_tower.selected"} <= {fault.step.site for fault in report.faults}


def test_a_crop_that_is_shifted_by_one_pixel(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crop = transform.centre_crop

    def shifted(pixels: torch.Tensor, size: int, offset: Callable[[int], int]) -> torch.Tensor:
        return crop(pixels, size, lambda spare: offset(spare) + (spare > 0))

    monkeypatch.setattr(transform, "centre_crop", shifted)
    report = compare(good)
    assert_first(report, "pixels.images", "pixels.images", "moved by 1 pixel")
    sites = {fault.step.site for fault in report.faults}
    assert sites == {"pixels.images", "pixels.videos"}  # the model itself introduces nothing
    assert all(step.verdict == "inherited" for step in report.steps if step.site == "logits")


def alter_videos(monkeypatch: pytest.MonkeyPatch, change: Callable[[Clip], Clip]) -> None:
    read = side_module.OurSide.read

    def altered(self: side_module.OurSide, path: Path, kind: Any, frames: Any) -> Clip:
        clip = read(self, path, kind, frames)
        return change(clip) if clip.kind == "video" else clip

    monkeypatch.setattr(side_module.OurSide, "read", altered)


def test_flipped_frames(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alter_videos(monkeypatch, lambda clip: replace(clip, frames=clip.frames[:, :, ::-1].copy()))
    report = compare(good)
    assert_first(report, "frames.0.drawn.mp4", "frames.0.drawn.mp4", "mirrored left to right")
    only_fault(report)
    verdicts = {step.site: step.verdict for step in report.steps}
    assert verdicts["pixels.videos"] == verdicts["video_tower.embeddings"] == verdicts["logits"] == "inherited"
    assert verdicts["pixels.images"] == verdicts["projector.image"] == "equal"


def test_frames_in_another_order(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = [0, 1, 2, 4, 3, 5, 6, 7]
    alter_videos(monkeypatch, lambda clip: replace(clip, frames=clip.frames[order].copy()))
    report = compare(good)
    assert_first(report, "frames.0.drawn.mp4", "frames.0.drawn.mp4", "frames in the order 0 1 2 4 3 5 6 7")
    only_fault(report)


def test_pixels_that_are_a_little_brighter(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No value is a whole grey level off, as when 1/256 stands for 1/255; the mean tells it from another kernel."""
    frame = transform.clip_video_frame

    def darker(frame_YXC: Any, spec: Any) -> torch.Tensor:
        return frame(frame_YXC, spec) - 0.9 / 255 / max(spec.std)

    monkeypatch.setattr(transform, "clip_video_frame", darker)
    report = compare(good)
    assert_first(report, "pixels.videos", "pixels.videos", "channel means")


def test_video_pixels_of_two_checkpoints_are_equal_or_not(good: Path, faulty: Path) -> None:
    """A grey level is forgiven where an image processor stands in for a video's, and nowhere else."""
    edit_config(faulty, lambda content: content.update(rescale_factor=1 / 256), "preprocessor_config.json")
    report = compare(faulty, good)
    assert_first(report, "pixels.images", "pixels.images")
    assert {fault.step.site for fault in report.faults} == {"pixels.images", "pixels.videos"}


def test_models_of_other_depths_say_so(good: Path, faulty: Path) -> None:
    """The same model without its last block: the norm is in order, but it reads the output of another block."""
    edit_config(faulty, lambda config: config["text_config"].update(num_hidden_layers=2))
    edit_weights(
        faulty, lambda state: [state.pop(name) for name in list(state) if "language_model.model.layers.2." in name]
    )
    report = compare(faulty, good)
    assert "2 text layers here, 3 in the reference" in report.notes
    line = "the reference has 1 more block of the text tower after blocks.1"
    assert_first(report, "text_tower.final_norm", "text_tower.blocks.2", line)
    assert report.faults[0].hints == (line,) and report.faults[0].their_module == "text_tower.blocks.2"
    fault = compare(good, faulty).faults[0]
    assert (fault.module, fault.their_module) == ("text_tower.blocks.2", "")
    assert fault.hints == ("this model has 1 more block of the text tower after blocks.1",)


def test_towers_of_other_depths_say_so(good: Path, tmp_path: Path) -> None:
    """The hidden state that is projected is counted from the end, so it is another one."""
    write_tiny_checkpoint(tmp_path, tiny_hf_config(**CONFIG, vision_num_hidden_layers=2), seed=4)
    report = compare(tmp_path, good)
    hints = [hint for fault in report.faults for hint in fault.hints]
    for kind in ("image", "video"):
        assert f"the reference has 2 more blocks of the {kind} tower after blocks.1" in hints


def test_the_number_of_frames_can_be_chosen(good: Path) -> None:
    lengths = []
    for frames in (4, None):
        report = compare(good, frames=frames)
        assert_no_alarm(report)
        ids = next(step.total for step in report.steps if step.site == "ids.0")
        assert ids is not None
        lengths.append(ids.scale)  # of ids: how many there are
    assert lengths[1] - lengths[0] == 4 * 5  # five tokens for each frame that is not taken


def test_other_frames(good: Path) -> None:
    """The original's sampler takes the last frame, transformers' recipe does not."""
    report = compare(good, choices=(("frame_sampler", "uniform-inclusive"),))
    assert_first(report, "frames.0.drawn.mp4", "frames.0.drawn.mp4", "0 3 6 9 13 16 19 23 of the file here, 0 3 6 9")


def test_our_rows_padded_on_the_right(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collate = side_module.collate

    def padded_right(prompts: Any, pad_id: int) -> Any:
        batch = collate(prompts, pad_id)
        ids, mask = batch.input_ids.clone(), batch.attention_mask.clone()
        for row, real in enumerate(batch.attention_mask.sum(1).tolist()):
            ids[row], mask[row] = ids[row].roll(real), mask[row].roll(real)
        return replace(batch, input_ids=ids, attention_mask=mask)

    monkeypatch.setattr(side_module, "collate", padded_right)
    report = compare(good)
    assert_first(report, "ids.1", "ids.1", "row 1 is padded on the right here and on the left in the reference")
    only_fault(report)
    verdicts = {step.site: step.verdict for step in report.steps}
    assert verdicts["tokens.1"] == "inherited"
    assert verdicts["text_tower.hidden_states.1"] in ("equal", "rounding")  # real tokens are not moved by padding


def test_a_mask_that_lets_tokens_see_the_future(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filmstrip.models import video_llava
    from filmstrip.ops.masks import AttentionMask

    monkeypatch.setattr(video_llava, "causal_mask", lambda *args: AttentionMask())
    report = compare(good)
    module = "text_tower.blocks.0.attention.mixed_values"
    assert_first(report, "text_tower.hidden_states.1", module, "mask, scale or softmax differ")


def test_a_fault_of_the_loop_alone(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every activation is right, and the cache is wrong: found at the tokens."""
    from filmstrip.cache import KVCache

    write = KVCache.write

    def forgetful(self: KVCache, layer: int, keys: torch.Tensor, values: torch.Tensor) -> Any:
        if keys.shape[2] == 1:
            values = values * 0
        return write(self, layer, keys, values)

    monkeypatch.setattr(KVCache, "write", forgetful)
    report = compare(good, new_tokens=12)
    assert {fault.step.stage for fault in report.faults} == {"tokens"}
    assert report.exit_code == 1


def test_the_users_own_media(good: Path, tmp_path: Path) -> None:
    import skimage.data
    from PIL import Image

    path = tmp_path / "cat.jpg"
    Image.fromarray(skimage.data.chelsea()).save(path)
    report = compare(good, media=(path,), question="what is this")
    assert report.exit_code == 0
    assert report.media == (str(path),)
    assert "frames.0.cat.jpg" in {step.site for step in report.steps}


def test_values_that_are_no_numbers(good: Path, faulty: Path) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    edit_weights(faulty, lambda state: state[name].view(-1)[:1].fill_(torch.nan))
    report = compare(faulty, good)
    assert_first(report, "text_tower.hidden_states.2", "text_tower.blocks.1.mlp.up_proj")


# --- the sister families ---


@pytest.mark.parametrize("model_type", ["llava", "llava_next_video"])
def test_no_alarm_for_the_sister_families(tmp_path: Path, model_type: Any) -> None:
    write_tiny_checkpoint(tmp_path, tiny_sister_config(model_type), processor="nested")
    report = compare(tmp_path)
    assert report.exit_code == 0, report.verdict
    verdicts = {step.site: step.verdict for step in report.steps}
    assert verdicts["pixels.images"] == verdicts["ids.0"] == verdicts["ids.1"] == verdicts["logits"] == "equal"
    if model_type == "llava_next_video":
        # Its frames cannot be had from an image processor that cuts tiles; torchvision may be missing.
        assert verdicts["pixels.videos"] in ("equal", "rounding", "absent")
        assert verdicts["video_tower.aggregated"] == "equal"


@pytest.mark.parametrize("model_type", ["llava", "llava_next_video"])
def test_a_fault_in_a_sister(tmp_path: Path, model_type: Any) -> None:
    """One tower serves both kinds of media: the fault is named where it is met first, and again for videos."""
    write_tiny_checkpoint(tmp_path / "good", tiny_sister_config(model_type), processor="nested")
    faulty = shutil.copytree(tmp_path / "good", tmp_path / "faulty")
    name = "vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias"
    edit_weights(faulty, lambda state: state[name].view(-1)[:4].add_(0.5))
    report = compare(faulty, tmp_path / "good")
    assert_first(report, "image_tower.hidden_states.2", "image_tower.blocks.1.mlp.fc1", "differs in 4 of 64 values")
    if model_type == "llava_next_video":
        assert [fault.module for fault in report.faults[1:]] == ["video_tower.blocks.1.mlp.fc1"]
    else:
        only_fault(report)


def test_a_sister_whose_processor_has_no_settings(tmp_path: Path) -> None:
    """LLaVA-1.5's processor has no default for the patch size: the models are compared on our inputs, said so."""
    write_tiny_checkpoint(tmp_path, tiny_sister_config("llava"))
    report = compare(tmp_path)
    assert report.exit_code == 0
    assert "2 could not be compared" in report.verdict
    absent = [step for step in report.steps if step.verdict == "absent"]
    assert [step.site for step in absent] == ["pixels", "ids"]
    assert all("sets no patch_size" in step.problem for step in absent)


def test_the_original_release_against_its_conversion(tmp_path: Path) -> None:
    """Another layout, another vocabulary size and other numbers for the placeholders; the same model."""
    write_original_checkpoint(tmp_path / "original", frames=8)
    succeed("convert", tmp_path / "original", tmp_path / "converted", "--to", "hf")
    report = compare(tmp_path / "converted", tmp_path / "original", preset="original")
    assert_no_alarm(report)
    assert report.verdict.startswith("equal")
    assert_no_alarm(compare(tmp_path / "converted"))
    with pytest.raises(CheckpointError, match="transformers has no implementation that reads this layout"):
        compare(tmp_path / "original")


def test_large_models_are_held_one_at_a_time(good: Path, faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Letting the models go between the runs changes nothing but the number of loads."""
    edit_config(faulty, lambda config: config["text_config"].update(rms_norm_eps=1e-6))
    kept = compare(faulty, good)
    loads = []
    load = side_module.OurSide._load

    def counted(self: side_module.OurSide) -> Any:
        loads.append(self.title)
        return load(self)

    monkeypatch.setattr(side_module.OurSide, "_load", counted)
    monkeypatch.setattr(side_module, "HELD_BYTES", 0)
    assert compare(faulty, good).to_dict() == kept.to_dict()
    assert len(loads) > 4


def test_code_in_a_checkpoint_is_not_run_and_not_asked_about(faulty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks on the terminal whether to run a tokenizer class that the checkpoint brings along."""
    marker = faulty / "ran"
    (faulty / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    settings = json.loads((faulty / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (faulty / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    with pytest.raises(CheckpointError, match="contains custom code"):
        compare_models(str(faulty), "transformers", FEW)
    assert not marker.exists()
