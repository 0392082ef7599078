"""Records a folder laid out as tests/golden is, with the plain implementation in reference.py."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from reference import Piece, Reference
from reference_parts import D, Shape, cut, fit, glue, pixels_of, random_weights, renorm, resize_rule, taylor
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

TEXTS = ["a red circle", "What is in the image?", "make it 12 times darker", "", "画 naïve\n\n  x"]
GOLDEN = Path(__file__).parent / "golden"
PROMPTS = json.loads((GOLDEN / "system_prompts.json").read_text(encoding="utf-8"))


def open_rgb(name: str) -> Image.Image:
    image = Image.open(GOLDEN / "images" / f"{name}.png")
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.split()[3])
        return white
    return image.convert("RGB")


@dataclass
class Recorder:
    """One folder in the making."""

    shape: Shape
    seed: int
    cases: list[dict[str, Any]] = field(default_factory=list)
    out: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        s = self.shape
        self.tokens = Tokenizer.from_file(str(GOLDEN / "checkpoint" / "tokenizer.json"))
        self.model, self.auto = random_weights(s, self.seed)
        self.ref = Reference(s, self.model, self.auto, self.tokens)
        self.rng = torch.Generator().manual_seed(self.seed + 1)
        self.limits = {
            "vae": {"max_image_size": 6 * s.stride, "min_image_size": 2 * s.stride, "image_stride": s.stride},
            "vit": {"max_image_size": 6 * s.vit_patch, "min_image_size": 2 * s.vit_patch, "image_stride": s.vit_patch},
        }

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng)

    def keep(self, case: str, **tensors: Tensor) -> None:
        for name, value in tensors.items():
            value = value.detach().clone()
            self.out[f"{case}/{name}"] = value.float() if value.is_floating_point() else value

    # ------------------------------------------------------------------------------------------- inference

    def text(self, text: str) -> Piece:
        ids = self.tokens.encode(text, add_special_tokens=False).ids
        return Piece("text", [self.ref.bos, *ids, self.ref.eos])

    def vae_piece(self, image: Image.Image) -> Piece:
        pixels = pixels_of(fit(image, self.limits["vae"]))
        latent = self.ref.encode(pixels[None])[0]
        return Piece("vae", content=cut(latent, 2), grid=(latent.shape[1] // 2, latent.shape[2] // 2))

    def vit_piece(self, image: Image.Image) -> Piece:
        p, pixels = self.shape.vit_patch, pixels_of(fit(image, self.limits["vit"]))
        return Piece("vit", content=cut(pixels, p), grid=(pixels.shape[1] // p, pixels.shape[2] // p))

    def speak(self, context: list[Piece], limit: int) -> tuple[list[int], list[Tensor], str]:
        """Greedy tokens (the start token first), logits at each of them, and the text."""
        tokens, logits, following = [], [], self.ref.bos
        while len(tokens) < limit:
            tokens.append(following)
            hidden = self.ref.hidden([*context, Piece("text", list(tokens))])
            logits.append(self.ref.logits(hidden[-1]))
            following = int(logits[-1].argmax())
            if following == self.ref.eos:
                break
        return tokens, logits, self.tokens.decode(tokens[1:], skip_special_tokens=False)

    def draw(self, contexts: list[list[Piece]], noise: Tensor, grid: tuple[int, int], q: dict[str, Any]) -> Tensor:
        """Latent tokens: Euler steps over the guided velocity. Contexts: full, without text, without image."""
        x, histories = noise.to(D), [[], [], []]
        t = torch.linspace(1, 0, q["num_timesteps"], dtype=D)
        t = q["timestep_shift"] * t / (1 + (q["timestep_shift"] - 1) * t)

        def velocity(branch: int, at: Tensor) -> Tensor:
            def run() -> Tensor:
                piece = Piece("vae", content=x, grid=grid, noised=True, t=at)
                return self.ref.hidden([*contexts[branch], piece])[-1 - len(x) : -1]

            return self.ref.velocity(taylor(histories[branch], run) if q.get("enable_taylorseer") else run())

        for now, then in pairwise(t):
            v = guided = velocity(0, now)
            if q["cfg_text_scale"] > 1 and q["cfg_interval"][0] < now <= q["cfg_interval"][1]:
                kind, low = q["cfg_renorm_type"], q["cfg_renorm_min"]
                without = velocity(1, now)
                guided = without + q["cfg_text_scale"] * (v - without)
                if kind == "text_channel":
                    guided = renorm(v, guided, low, each=True)
                if q["cfg_img_scale"] > 1:
                    without = velocity(2, now)
                    guided = without + q["cfg_img_scale"] * (guided - without)
                if kind != "text_channel":
                    guided = renorm(v, guided, low, each=kind == "channel")
            x = x - (now - then) * guided
        return x

    def interleave(self, name: str, inputs: list[tuple[str, str]], **settings: Any) -> None:
        case: dict[str, Any] = {"name": name, "kind": "interleave", "settings": settings}
        case["inputs"] = [{"type": kind, "value": value} for kind, value in inputs]
        reading = settings.get("understanding_output", False)
        context: list[Piece] = []
        if settings.get("think"):
            context = [self.text(PROMPTS["understand" if reading else "generate"])]
        without_text, without_image, size = list(context), list(context), None
        for kind, value in inputs:
            if kind == "text":
                without_text = list(context)
                context = [*context, self.text(value)]
                without_image = [*without_image, self.text(value)]
            else:
                image = fit(open_rgb(value), self.limits["vae"])
                size = image.size
                context = [*context, *([] if reading else [self.vae_piece(image)]), self.vit_piece(image)]
                without_text = list(context)
        if reading or settings.get("think"):
            tokens, logits, case["text"] = self.speak(context, settings["max_think_token_n"])
            self.keep(name, tokens=torch.tensor(tokens), logits=torch.stack(logits))
        if not reading:
            if settings.get("think"):
                context = [*context, self.text(case["text"])]
            height, width = settings.get("image_shapes") or (size[1], size[0])
            grid = (height // self.shape.stride, width // self.shape.stride)
            noise = self.normal(grid[0] * grid[1], 4 * self.shape.z)
            latent = self.draw([context, without_text, without_image], noise, grid, settings)
            decoded = self.ref.decode(glue(latent, *grid, self.shape.z)[None])[0]
            levels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0)
            self.keep(name, noise=noise, latent=latent, image=levels)
            case["image_shape"] = [height, width]
        self.cases.append(case)

    # -------------------------------------------------------------------------------------------- the parts

    def parts(self) -> None:
        ids = [self.tokens.encode(text, add_special_tokens=False).ids for text in TEXTS]
        r = self.ref
        special = {"bos_token_id": r.bos, "eos_token_id": r.eos, "start_of_image": r.soi, "end_of_image": r.eoi}
        self.cases.append({"name": "tokenize", "kind": "tokenize", "texts": TEXTS, "ids": ids, "special": special})
        for kind, limits in self.limits.items():
            sizes = [{"wh": wh, "images": n} for wh in ([640, 480], [33, 47], [5000, 20], [1, 1]) for n in (1, 3)]
            for item in sizes:
                item["expect"] = list(resize_rule(*item["wh"], limits, item["images"]))
            self.cases.append({"name": f"size_{kind}", "kind": "resize", "transform": limits, "cases": sizes})
        for name in ("alpha", "wide"):
            image = fit(open_rgb(name), self.limits["vae"])
            vae, vit = (pixels_of(fit(image, self.limits[kind])) for kind in ("vae", "vit"))
            self.keep(
                f"transform_{name}", vae=vae, vit=vit, vit_direct=pixels_of(fit(open_rgb(name), self.limits["vit"]))
            )
            self.cases.append({"name": f"transform_{name}", "kind": "transform", "image": name})
        piece = self.vit_piece(open_rgb("wide"))
        features = r.vit(piece.content, piece.grid)
        index = r.places(piece.grid, self.shape.vit_side)
        embeds = r.connect(features, piece.grid)
        self.keep("vit", pixels=piece.content, position_ids=index, features=features, embeds=embeds)
        self.cases.append({"name": "vit", "kind": "vit", "image": "wide"})
        pixels = pixels_of(fit(open_rgb("tall"), self.limits["vae"]))[None]
        latent = r.encode(pixels)
        self.keep("vae", pixels=pixels, latent=latent, decoded=r.decode(latent))
        self.cases.append({"name": "vae", "kind": "vae", "image": "tall"})

    # --------------------------------------------------------------------------------------------- training

    def train(self) -> None:
        """All kinds of sample in one pack: `loss` says what is learnt; pictures are (rows, columns)."""
        r, s = self.ref, self.shape
        plans = {
            "t2i": [("text", 5, 0), ("vae_image", (2, 3), 1)],
            "vlm": [("vit_image", (3, 2), 0), ("text", 4, 0), ("text", 6, 1)],
            "edit": [("vae_image", (2, 2), 0), ("vit_image", (2, 2), 0), ("text", 3, 0), ("vae_image", (2, 2), 1)],
            "chain": [
                ("text", 2, 0), ("vae_image", (3, 2), 1), ("vae_image", (3, 2), 0), ("vit_image", (3, 2), 0),
                ("text", 3, 1), ("vae_image", (1, 2), 1),
            ],
        }  # fmt: skip
        listing: dict[str, list[dict[str, Any]]] = {}
        images: list[Tensor] = []
        shapes: list[tuple[int, int]] = []
        for sample, parts in plans.items():
            listing[sample] = []
            for n, (kind, what, loss) in enumerate(parts):
                plan: dict[str, Any] = {"type": kind, "loss": loss, "special_token_loss": 0}
                if kind == "text":
                    plan["ids"] = torch.randint(0, 400, (what,), generator=self.rng).tolist()
                else:
                    side = s.vit_patch if kind == "vit_image" else s.stride
                    pixels = self.normal(3, what[0] * side, what[1] * side).clamp(-1, 1)
                    self.keep("train", **{f"pixels/{sample}/{n}": pixels})
                    plan["size"] = list(pixels.shape[1:])
                    if kind == "vae_image":
                        images.append(pixels)
                        shapes.append(what)
                listing[sample].append(plan)
        padded = torch.zeros(len(images), 3, *(max(p.shape[i] for p in images) for i in (1, 2)))
        for target, pixels in zip(padded, images, strict=True):
            target[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        latents = r.encode(padded.to(D)).float()
        self.keep("train", padded_latent=latents)
        self._losses(listing, latents, shapes)

    def _losses(self, listing: dict[str, list[dict[str, Any]]], latents: Tensor, shapes: list[tuple[int, int]]) -> None:
        r, s = self.ref, self.shape
        weights = {name: w.requires_grad_(not name.endswith("pos_embed")) for name, w in r.w.items()}
        got: dict[str, list[Any]] = {}

        def add(name: str, values: Any) -> None:
            got.setdefault(name, []).append(torch.as_tensor(values))

        start, image, ce, mse, lengths, splits, modes = 0, 0, [], [], [], [], []
        for number, (sample, plans) in enumerate(listing.items()):
            pieces: list[Piece] = []
            sample_start, targets = start, []
            for n, plan in enumerate(plans):
                if plan["type"] == "text":
                    ids = [r.bos, *plan["ids"], r.eos]
                    pieces.append(Piece("text", ids, loss=bool(plan["loss"])))
                    add("packed_text_ids", ids)
                    add("packed_text_indexes", range(start, start + len(ids)))
                    if plan["loss"]:
                        add("packed_label_ids", ids[1:])
                        add("ce_loss_indexes", range(start, start + len(ids) - 1))
                        add("ce_loss_weights", [1 / math.sqrt(len(ids) - 1)] * (len(ids) - 1))
                else:
                    pieces.append(self._image(sample, n, plan, latents, shapes, image, add))
                    image += plan["type"] == "vae_image"
                    piece, body = pieces[-1], range(start + 1, start + pieces[-1].length - 1)
                    add("packed_text_ids", [r.soi, r.eoi])
                    add("packed_text_indexes", [start, start + piece.length - 1])
                    add("packed_vit_token_indexes" if piece.kind == "vit" else "packed_vae_token_indexes", body)
                    if piece.noised:
                        add("mse_loss_indexes", body)
                targets.append((pieces[-1], start - sample_start))
                start += pieces[-1].length
                splits.append(pieces[-1].length)
                modes.append("causal" if plan["type"] == "text" else "noise" if pieces[-1].noised else "full")
            positions, _, mask = r.layout(pieces)
            add("packed_position_ids", positions)
            self.keep("train", **{f"mask_{number}": mask})
            lengths.append(start - sample_start)
            hidden = r.hidden(pieces)
            for piece, at in targets:
                if piece.loss and piece.kind == "text":
                    logits = r.logits(hidden[at : at + piece.length - 1])
                    ce.append(F.cross_entropy(logits, torch.tensor(piece.ids[1:]), reduction="none"))
                elif piece.noised:
                    velocity = r.velocity(hidden[at + 1 : at + piece.length - 1])
                    mse.append((velocity - piece.target) ** 2)
        loss = torch.cat(ce).mean() + torch.cat(mse).mean()
        loss.backward()
        flat = {name: torch.cat(parts) for name, parts in got.items()}
        self.keep("train", **flat, ce=torch.cat(ce), mse=torch.cat(mse), loss=loss)
        for name, w in weights.items():
            if w.requires_grad:
                gradient = torch.zeros_like(w) if w.grad is None else w.grad
                self.keep("train", **{f"grad_norm/{name}": gradient.norm()})
                if name in ("connector.fc1.weight", "llm2vae.weight", "time_embedder.mlp.0.weight"):
                    self.keep("train", **{f"grad/{name}": gradient})
            w.requires_grad_(False)
        vit = self.out["train/vit_token_seqlens"] = torch.tensor(
            [
                plan["size"][0] * plan["size"][1] // s.vit_patch**2
                for p in listing.values()
                for plan in p
                if plan["type"] == "vit_image"
            ]
        )
        case = {"name": "train", "kind": "train", "samples": listing, "sample_lens": lengths, "sequence_length": start}
        case |= {
            "latent_shapes": [list(grid) for grid in shapes],
            "vit_token_seqlens": vit.tolist(),
            "loss": loss.item(),
        }
        layout = {"split_lens": [*splits, 7], "attn_modes": [*modes, "causal"], "sample_lens": [*lengths, 7]}
        self.cases += [case, {"name": "layout", "kind": "pack", "max_num_tokens": start + 7, **layout}]

    def _image(self, sample, n, plan, latents, shapes, image, add) -> Piece:
        s, r = self.shape, self.ref
        if plan["type"] == "vit_image":
            pixels = self.out[f"train/pixels/{sample}/{n}"].to(D)
            grid = (pixels.shape[1] // s.vit_patch, pixels.shape[2] // s.vit_patch)
            add("packed_vit_tokens", cut(pixels, s.vit_patch))
            add("packed_vit_position_ids", r.places(grid, s.vit_side))
            return Piece("vit", content=cut(pixels, s.vit_patch), grid=grid)
        rows, columns = grid = shapes[image]
        clean = cut(latents[image][:, : 2 * rows, : 2 * columns].to(D), 2)
        noise = self.normal(*clean.shape)
        add("noise", noise)
        add("packed_latent_position_ids", r.places(grid, s.latent_side))
        drawn = self.normal(1) if plan["loss"] else torch.tensor([-math.inf])
        add("packed_timesteps", drawn.expand(len(clean)))
        t = drawn[0].to(D).sigmoid()
        t = s.timestep_shift * t / (1 + (s.timestep_shift - 1) * t)
        piece = Piece("vae", content=(1 - t) * clean + t * noise.to(D), grid=grid, noised=bool(plan["loss"]), t=t)
        if not plan["loss"]:
            piece.content = clean
        piece.target = noise.to(D) - clean
        return piece


def record(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Writes a folder of recorded cases of every kind.

    Args:
        folder: created.
        shape: of the model.
        seed: of the weights, the noise and the training samples.
    """
    torch.manual_seed(seed)
    r = Recorder(shape, seed)
    draw = {
        "num_timesteps": 5,
        "timestep_shift": 3.0,
        "cfg_interval": [0.41, 1.0],
        "cfg_renorm_min": 0.0,
        "cfg_renorm_type": "global",
        "cfg_text_scale": 4.0,
        "cfg_img_scale": 1.0,
    }
    read = {"understanding_output": True, "max_think_token_n": 9, "do_sample": False}
    size = [3 * shape.stride, 2 * shape.stride]
    edit = {**draw, "cfg_interval": [0.0, 1.0], "cfg_img_scale": 2.0}
    with torch.no_grad():
        r.parts()
        r.interleave("read_text", [("text", TEXTS[1])], **read)
        r.interleave("read_images", [("image", "wide"), ("image", "alpha"), ("text", TEXTS[1])], **read)
        r.interleave("read_think", [("image", "tall"), ("text", "How many?")], **read, think=True)
        r.interleave("draw", [("text", TEXTS[0])], **draw, image_shapes=size)
        r.interleave("draw_no_cfg", [("text", TEXTS[0])], **{**draw, "cfg_text_scale": 1.0}, image_shapes=size)
        r.interleave(
            "draw_both", [("text", "x")], **{**draw, "cfg_img_scale": 1.5, "cfg_renorm_min": 0.4}, image_shapes=size
        )
        think = {"think": True, "max_think_token_n": 6, "do_sample": False}
        r.interleave("draw_think", [("text", TEXTS[0])], **draw, **think, image_shapes=size)
        taylor_seer = {**draw, "num_timesteps": 14, "enable_taylorseer": True}
        r.interleave("draw_taylorseer", [("text", TEXTS[0])], **taylor_seer, image_shapes=size)
        r.interleave("edit", [("image", "square"), ("text", TEXTS[2])], **edit, **think)
        each = {**edit, "cfg_renorm_type": "channel", "cfg_renorm_min": 0.3}
        r.interleave("edit_channel", [("image", "gray"), ("text", TEXTS[2])], **each)
        mixed = [("image", "square"), ("text", "the hat from"), ("image", "tall"), ("text", "on the cat")]
        r.interleave("edit_two", mixed, **{**edit, "cfg_renorm_type": "text_channel"})
        r.interleave("edit_ends_in_image", [("text", "draw this:"), ("image", "wide")], **edit)
    r.train()
    return _write(folder, r)


def _write(folder: Path, r: Recorder) -> Path:
    s, checkpoint = r.shape, folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "tokenizer.json"):
        shutil.copy(GOLDEN / "checkpoint" / name, checkpoint / name)
    shutil.copytree(GOLDEN / "images", folder / "images")
    save_file(r.model, checkpoint / "ema.safetensors")
    save_file(r.auto, checkpoint / "ae.safetensors")
    llm = {"hidden_size": s.hidden, "num_hidden_layers": s.layers, "num_attention_heads": s.heads}
    llm |= {"num_key_value_heads": s.kv_heads, "intermediate_size": s.mlp, "vocab_size": s.vocab}
    llm |= {"rope_theta": s.rope_theta, "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 512}
    vit = {"hidden_size": s.vit_hidden, "num_hidden_layers": s.vit_layers + 1, "num_attention_heads": s.vit_heads}
    vit |= {"intermediate_size": s.vit_mlp, "patch_size": s.vit_patch, "image_size": s.vit_patch * s.vit_side}
    vae = {"ch": s.ch, "ch_mult": list(s.ch_mult), "num_res_blocks": s.res_blocks, "z_channels": s.z}
    vae |= {"downsample": s.down, "scale_factor": s.scale, "shift_factor": s.shift}
    top = {"latent_patch_size": 2, "max_latent_size": s.latent_side, "vit_max_num_patch_per_side": s.vit_side}
    top |= {"interpolate_pos": s.interpolate, "timestep_shift": s.timestep_shift, "vae_config": vae}
    files = {"config.json": top, "llm_config.json": llm, "vit_config.json": vit}
    for name, content in files.items():
        (checkpoint / name).write_text(json.dumps(content), encoding="utf-8")
    document: dict[str, Any] = {"seed": r.seed, "vae_transform": r.limits["vae"], "vit_transform": r.limits["vit"]}
    (folder / "cases.json").write_text(json.dumps({**document, "cases": r.cases}), encoding="utf-8")
    save_file({name: value.contiguous() for name, value in r.out.items()}, folder / "expected.safetensors")
    return folder
