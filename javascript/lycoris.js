// Cards of the page "LyCORIS": a click writes the network's tag into the prompt, or takes it out again. One global: lyco.

(function() {
    // The prompt's field of a tab, or its negative prompt's.
    function field(tab, which) {
        return gradioApp().querySelector(`#${tab}_${which} > label > textarea`);
    }

    function setting(name, otherwise) {
        return typeof opts === "undefined" || opts[name] === undefined ? otherwise : opts[name];
    }

    // The name at a tag's start, as the server reads it: between quotation marks, or up to the first colon.
    function nameOf(content) {
        const quoted = /^\s*"((?:[^"]|"")*)"\s*(?::|$)/.exec(content);
        return quoted ? quoted[1].replaceAll('""', '"') : content.split(":", 1)[0].trim();
    }

    // The text without the tags of these names, whatever their arguments, and without what a click had written around them; null where there is none.
    function withoutTags(text, names, before, after) {
        let kept = "";
        let end = 0;
        for (const found of text.matchAll(/<lyco:([^>]+)>/g)) {
            if (!names.includes(nameOf(found[1]))) {
                continue;
            }
            let start = found.index;
            if (before && text.slice(end, start).endsWith(before)) {
                start -= before.length;
            }
            kept += text.slice(end, start);
            end = found.index + found[0].length;
            if (after && text.startsWith(after, end)) {
                end += after.length;
            }
        }
        return end ? kept + text.slice(end) : null;
    }

    function write(area, text) {
        area.value = text;
        updateInput(area);
    }

    function toggle(tab, card) {
        const separator = setting("extra_networks_add_text_separator", " ");
        const prompt = field(tab, "prompt");
        const negative = field(tab, "neg_prompt");
        const names = card.names.concat(nameOf(card.tag));
        const without = withoutTags(prompt.value, names, separator, card.text ? " " + card.text : "");
        if (without !== null) {
            write(prompt, without);
            if (card.negative && negative.value.includes(card.negative)) {
                const whole = negative.value.includes(separator + card.negative) ? separator + card.negative : card.negative;
                write(negative, negative.value.replace(whole, () => ""));
            }
            return;
        }
        const strength = card.strength === null ? setting("lycoris_default_strength", 1) : card.strength;
        write(prompt, prompt.value + (prompt.value ? separator : "") + `<lyco:${card.tag}:${Number(strength)}>` + (card.text ? " " + card.text : ""));
        if (card.negative) {
            write(negative, negative.value + (negative.value ? separator : "") + card.negative);
        }
    }

    // Draws one card anew, after its remarks were changed.
    function refreshCard(tab, name) {
        requestGet("./sd_extra_networks/get-single-card", {page: "lycoris", tabname: tab, name: name}, function(data) {
            const card = Array.from(gradioApp().querySelectorAll(`#${tab}_lycoris_cards > .card`)).find(each => each.dataset.name === name);
            if (!data || !data.html || !card) {
                return;
            }
            const holder = document.createElement("div");
            holder.innerHTML = data.html; // made by the server, which escapes whatever a file says
            card.replaceWith(holder.firstElementChild);
        }, function() {});
    }

    window.lyco = {toggle, refreshCard};
})();
