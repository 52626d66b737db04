"""Shows the tests what the WebUI's HTTP API does not: comments, hooks, the parameters' bits; and breaks a picture on purpose. Never install it."""

import base64
import hashlib
import sys

import torch
from fastapi import Body
from modules import extra_networks, script_callbacks, scripts, sd_hijack, sd_models, sd_unet, shared
from modules.sd_samplers_common import InterruptedException

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_hooks", "_state_dict_hooks",
         "_load_state_dict_pre_hooks")
told = []
plan = {}
planned = {}
turned = {}
kept = {}
watched = {"pairs": [], "seen": [], "handles": []}


class Probe(scripts.Script):
    def title(self):
        return "Lyco probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        if planned.get("when") != "batch":
            self.write_prompts(p, "all_")
        stop_watching()
        begin_watching()

    def before_process_batch(self, p, *args, **kwargs):
        if planned.get("when") == "batch":
            self.write_prompts(p, "")

    def write_prompts(self, p, which):
        """Puts other prompts in the place of the user's, as scripts with wildcards do."""
        for kind, name in (("positive", "prompts"), ("negative", "negative_prompts"), ("hr_positive", "hr_prompts"), ("hr_negative", "hr_negative_prompts")):
            if planned.get(kind) and (which or not kind.startswith("hr_")):
                setattr(p, which + name, list(planned[kind]))
        planned.clear()

    def postprocess(self, p, processed, *args):
        told[:] = p.comments
        turned.clear()
        stop_watching()


def trees():
    model = sd_models.model_data.sd_model
    yield "unet", model.model.diffusion_model
    if hasattr(model, "conditioner"):
        for number, embedder in enumerate(model.conditioner.embedders):
            yield f"embedder{number}", embedder
    else:
        yield "text", model.cond_stage_model


def modules():
    for tree, root in trees():
        for name, module in root.named_modules():
            yield f"{tree}.{name}", module


def count_hooks():
    return {name: sum(len(getattr(module, field)) for field in HOOKS) for name, module in modules() if any(getattr(module, field) for field in HOOKS)}


def digest():
    """Names, identities and bits of all parameters, buffers and the modules' own forward."""
    bits, identity = hashlib.sha256(), []
    for name, module in modules():
        for field in ("_parameters", "_buffers"):
            for key, tensor in getattr(module, field).items():
                if tensor is not None:
                    bits.update(f"{name}.{key}".encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
                    identity.append((f"{name}.{key}", id(tensor), tensor.requires_grad))
        identity.append((name, "forward" in vars(module)))
    return bits.hexdigest(), hashlib.sha256(repr(identity).encode()).hexdigest()


def turn(params):
    """A slow second way to schedules: turns the built-in's networks at each call of the denoiser, and swaps texts for those of a picture before."""
    strengths = turned.get("strengths")
    if strengths:
        for network in sys.modules["networks"].loaded_networks:
            network.unet_multiplier = strengths[min(params.denoiser.step, len(strengths) - 1)]
    if turned.get("keep"):
        kept[turned["keep"], params.denoiser.step] = params.text_cond, params.text_uncond
    name = (turned.get("texts") or {}).get(str(params.denoiser.step))
    if name:
        params.text_cond, params.text_uncond = kept[name, params.denoiser.step]


def at_step(params):
    """Breaks the sampling where a test asked for it, once: by an interrupt, a skip, or in a layer by an exception or what the host raises on an interrupt."""
    if plan.get("step") != params.sampling_step:
        return
    wanted = dict(plan)
    plan.clear()
    if wanted["what"] in ("interrupt", "skip"):
        getattr(shared.state, wanted["what"])()
        return
    break_in(wanted)


def break_in(wanted):
    """Has the layer's next forward fail."""
    kind = {"exception": RuntimeError, "interrupt in a layer": InterruptedException}[wanted["what"]]

    def pre_hook(module, args):
        handle.remove()
        raise kind("the probe fails on purpose")

    handle = dict(modules())[wanted["layer"]].register_forward_pre_hook(pre_hook)


def compare(texts, size):
    """What our backbone makes of texts, a picture and latents, and the host's own methods: for each the largest difference, and the largest number."""
    from modules.prompt_parser import SdConditioning

    from lib_lycoris.training.config import TrainConfig
    from lib_lycoris.training.material import Framing
    from lib_lycoris.webui import host
    from lib_lycoris.webui.backbone import WebUIBackbone

    model, ours = sd_models.model_data.sd_model, WebUIBackbone(TrainConfig(), host.loaded_checkpoint())
    width, height = size
    theirs = model.get_learned_conditioning(SdConditioning(texts, width=width, height=height))
    mine = ours.encode_captions(texts)
    random = torch.Generator().manual_seed(1)
    x, picture = torch.randn(len(texts), 4, 8, 8, generator=random), torch.rand(1, 3, 64, 64, generator=random) * 2 - 1
    t = torch.arange(len(texts)) * 300 + 50
    framings = {"framings": [Framing((height, width), (0, 0), (height, width))] * len(texts)} if ours.framed else {}
    answer = model.apply_model(x, t, theirs if isinstance(theirs, dict) else {"c_crossattn": [theirs]})
    torch.manual_seed(5)
    latents = model.get_first_stage_encoding(model.encode_first_stage(picture))
    pairs = {
        "texts": (mine["crossattn"] if ours.framed else mine, theirs["crossattn"] if ours.framed else theirs),
        "answer": (ours.predict(x, t, mine, **framings), answer),
        "latents": (ours.encode_pictures(picture, torch.Generator().manual_seed(5)), latents),
        "schedule": (ours.alphas_cumprod, model.alphas_cumprod.cpu().float()),
    }
    found = {name: (float((one - other).abs().max()), float(other.abs().max())) for name, (one, other) in pairs.items()}
    return {"found": found, "base model": ours.base_model, "prediction": ours.prediction}


def begin_watching():
    """Has what is added between a block and the next one kept, call by call; our hooks come later, so that they run behind this one."""
    found = dict(modules()) if watched["pairs"] else {}
    for number, (block, following) in enumerate(watched["pairs"]):
        pending = []
        watched["handles"] += [
            found[f"unet.{block}"].register_forward_hook(lambda module, args, output, pending=pending: pending.append(output.detach().clone())),
            found[f"unet.{following}"].register_forward_pre_hook(lambda module, args, pending=pending, number=number: watched["seen"].append(
                (number, args[0][:, : pending[-1].shape[1]].detach().float() - pending.pop().float()))),
        ]


def stop_watching():
    for handle in watched["handles"]:
        handle.remove()
    watched["handles"] = []


def as_text(tensor):
    return {"shape": list(tensor.shape), "bytes": base64.b64encode(tensor.cpu().contiguous().numpy().tobytes()).decode()}


def set_break(wanted):
    """Plans a break in a picture's step; in a training it is the next forward of the layer."""
    plan.clear()
    if wanted["step"] == "training":
        break_in(wanted)
    else:
        plan.update(wanted)


def routes(demo, app):
    @app.get("/probe/v1/model")
    def model():
        bits, identity = digest()
        return {"hooks": count_hooks(), "bits": bits, "identity": identity, "networks": sorted(extra_networks.extra_network_registry),
                "dtypes": sorted({str(parameter.dtype) for _, tree in trees() for parameter in tree.parameters()}),
                "checkpoint": sd_models.model_data.sd_model.sd_checkpoint_info.name}

    @app.get("/probe/v1/embeddings")
    def embeddings():
        from modules.sd_hijack import model_hijack

        db = model_hijack.embedding_db
        return {"words": {name: "ours" if hasattr(each, "lyco_source") else "theirs" for name, each in db.word_embeddings.items()},
                "skipped": {name: "ours" if hasattr(each, "lyco_source") else "theirs" for name, each in db.skipped_embeddings.items()},
                "tokens": sum(len(each) for each in db.ids_lookup.values())}

    @app.get("/probe/v1/comments")
    def comments():
        return told

    @app.get("/probe/v1/comments-as-html")
    def comments_as_html():
        from modules.ui_common import plaintext_to_html

        return plaintext_to_html("".join(f"{comment}\n" for comment in told), classname="comments")

    @app.post("/probe/v1/plan")
    def set_plan(wanted: dict = Body()):  # noqa: B008
        set_break(wanted)

    @app.post("/probe/v1/prompts")
    def set_prompts(wanted: dict = Body()):  # noqa: B008
        planned.clear()
        planned.update(wanted)

    @app.post("/probe/v1/watch")
    def watch(wanted: dict = Body()):  # noqa: B008
        watched["pairs"] = wanted["pairs"]
        seen, watched["seen"] = watched["seen"], []
        return [{"place": number, **as_text(added)} for number, added in seen]

    @app.post("/probe/v1/turn")
    def set_turns(wanted: dict = Body()):  # noqa: B008
        turned.clear()
        turned.update(wanted)

    @app.post("/probe/v1/empty-cond")
    def empty_cond():
        with torch.no_grad():
            return hashlib.sha256(sd_models.get_empty_cond(sd_models.model_data.sd_model).cpu().numpy().tobytes()).hexdigest()

    @app.post("/probe/v1/backbone")
    def compare_backbone(wanted: dict = Body()):  # noqa: B008
        with torch.no_grad():
            return compare(wanted["texts"], wanted["size"])

    @app.post("/probe/v1/reload-embeddings")
    def reload_embeddings():
        sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)

    @app.post("/probe/v1/reload-ui")
    def reload_ui():
        shared.state.request_restart()


class PlainUnet(sd_unet.SdUnet):
    """A program in the UNet's place."""

    def forward(self, x, timesteps, context, *args, **kwargs):
        return 0.5 * x


class PlainOption(sd_unet.SdUnetOption):
    label = "[probe] <b>plain</b>"

    def create_unet(self):
        return PlainUnet()


if hasattr(script_callbacks, "on_list_unets"):
    script_callbacks.on_list_unets(lambda options: options.append(PlainOption()))
script_callbacks.on_cfg_denoiser(turn)
script_callbacks.on_cfg_denoiser(at_step)
script_callbacks.on_app_started(routes)
