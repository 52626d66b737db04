"""Infotexts: hashes are written, and a pasted text finds the file by its hash where it has another name here."""

from __future__ import annotations

import base64
import contextlib

import pytest

from .network_files import write_network

NAMES = [("before", "after"), ('odd, (na"me) [x]', "plain"), ("plainer", 'now, "odd" & (x)'), ("up/in a folder", "down"), ("a$&b", "$1 {x}")]


def pasted(webui, text):
    """What the host reads out of an infotext, after everybody's callbacks."""
    if webui.kind == "real":
        from io import BytesIO

        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        file, info = BytesIO(), PngInfo()
        info.add_text("parameters", text)
        Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
        return webui.ask("/sdapi/v1/png-info", {"image": base64.b64encode(file.getvalue()).decode()})["parameters"]
    prompt, _, rest = text.partition("\nNegative prompt: ")
    negative, _, line = rest.partition("\n")
    params = {"Prompt": prompt, "Negative prompt": negative}
    for key in ("Lyco hashes", "Lora hashes", "Hires prompt"):
        if f'{key}: "' in line:
            params[key] = line.partition(f'{key}: "')[2].partition('", ')[0].replace('\\"', '"').replace("\\\\", "\\")
    webui._callbacks.run("infotext_pasted", text, params)
    return params


def an_infotext(prompt, negative, **more):
    import json

    values = {"Steps": 4, "Sampler": "Euler", "CFG scale": 5, "Seed": 1, "Size": "64x64", **more}
    rest = ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False) if isinstance(value, str) and key != 'Size' else value}" for key, value in values.items())
    return f"{prompt}\nNegative prompt: {negative}\n{rest}, "


@contextlib.contextmanager
def files(webui, *names, seed=77):
    """Networks for the time of a test, each with tensors of its own."""
    paths = [webui.networks / f"{name}.safetensors" for name in names]
    try:
        for number, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_network(path, webui.shapes, seed=seed + number)
        yield paths
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def short(path):
    from lib_lycoris.files.hashes import model_hash

    return model_hash(path)[:12]


def test_a_renamed_network_is_found_wherever_prompts_stand(webui):
    with files(webui, "now called so") as (path,):
        digest = short(path)
        tag = "<lyco:once:0.5:-1:lbw=INS>"
        read = pasted(webui, an_infotext(f"a {tag}, b", f"c {tag}", **{"Hires prompt": f"d {tag} <lora:once:1>", "Lyco hashes": f"once: {digest}"}))
    assert read["Prompt"] == "a <lyco:now called so:0.5:-1:lbw=INS>, b"
    assert read["Negative prompt"] == "c <lyco:now called so:0.5:-1:lbw=INS>"
    assert read["Hires prompt"] == "d <lyco:now called so:0.5:-1:lbw=INS> <lora:once:1>"


def test_other_tags_and_names_that_mean_the_right_file_stay(webui):
    with files(webui, "stays", "moved") as (stays, moved):
        text = an_infotext("<lyco:stays:1> <lyco:gone:1> <lyco:unhashed:1> <lora:old:1> <lyco:old:1>", "x",
                           **{"Lyco hashes": f"stays: {short(stays)}, gone: 0123456789ab, old: {short(moved)}"})
        assert pasted(webui, text)["Prompt"] == "<lyco:stays:1> <lyco:gone:1> <lyco:unhashed:1> <lora:old:1> <lyco:moved:1>"


def test_a_name_that_means_another_file_here_is_put_right(webui):
    with files(webui, "dog", "cat") as (_, cat):
        assert pasted(webui, an_infotext("<lyco:dog:1>", "x", **{"Lyco hashes": f"dog: {short(cat)}"}))["Prompt"] == "<lyco:cat:1>"


def test_hashes_that_the_built_in_wrote_are_understood_too(webui):
    with files(webui, "here") as (path,):
        assert pasted(webui, an_infotext("<lyco:there:1>", "x", **{"Lora hashes": f"there: {short(path)}"}))["Prompt"] == "<lyco:here:1>"


def test_an_infotext_without_hashes_stays_as_it_is(webui):
    assert pasted(webui, an_infotext("<lyco:there:1>", "x"))["Prompt"] == "<lyco:there:1>"
    assert pasted(webui, an_infotext("<lyco:there:1>", "x", **{"Lyco hashes": ":::, , x"}))["Prompt"] == "<lyco:there:1>"


@pytest.mark.webui
@pytest.mark.parametrize(("old", "new"), NAMES)
def test_what_a_picture_says_is_enough_to_find_its_renamed_network(real_webui, old, new):
    from lib_lycoris.prompt.edit import written_name

    with files(real_webui, old, new, seed=sum(map(ord, old))) as (before, after):
        after.unlink()
        name = old.rpartition("/")[2]
        made = real_webui.picture(f"a shape <lyco:{written_name(name)}:0.7>")
        assert not made.comments
        before.rename(after)
        read = real_webui.ask("/sdapi/v1/png-info", {"image": base64.b64encode(made.files[0]).decode()})["parameters"]
        assert read["Prompt"] == f"a shape <lyco:{written_name(new)}:0.7>"
        again = real_webui.picture(read["Prompt"])
        assert again.pictures == made.pictures and not again.comments


def test_the_setting_leaves_hashes_out(webui):
    webui.set_options(lycoris_add_hashes=False)
    try:
        assert "Lyco hashes" not in webui.picture("x <lyco:A:1>").parameters
    finally:
        webui.set_options(lycoris_add_hashes=True)
    assert "Lyco hashes" in webui.picture("x <lyco:A:1>").parameters
