// Completion in the studio's prompts: "<lyco:" offers networks, a word's beginning offers embeddings and trigger words. No globals.
(function() {
    const FIELDS = "#lycoris_generate_prompt textarea, #lycoris_generate_negative textarea";
    const MOST = 8;
    let words = [];
    let asked = 0;
    let field = null; // the one that the list belongs to
    let start = 0;
    let chosen = 0;
    let shown = [];

    const list = document.createElement("ul");
    list.id = "lycoris_complete";
    list.setAttribute("role", "listbox");
    list.setAttribute("aria-label", "Completions");
    list.hidden = true;

    async function refresh() {
        if (Date.now() - asked < 3000) {
            return;
        }
        asked = Date.now();
        try {
            const answer = await fetch("lycoris/v1/words");
            words = answer.ok ? (await answer.json()).words : words;
        } catch {
            // the studio has ended; what is known stays
        }
    }

    // What is being typed before the caret: [where it starts, its text, whether it is a network's tag], or null.
    function typed(area) {
        const before = area.value.slice(0, area.selectionStart);
        const tag = /<lyco:([^<>:]*)$/.exec(before);
        if (tag) {
            return [tag.index, tag[1].toLowerCase(), true];
        }
        const word = /(?:^|[\s,(\[])([^\s,()<>\[\]:]{2,})$/.exec(before);
        return word ? [before.length - word[1].length, word[1].toLowerCase(), false] : null;
    }

    function matching(text, tags) {
        const fits = word => tags ? word.kind === "network" && word.name.toLowerCase().includes(text)
            : word.kind !== "network" && word.insert.toLowerCase().startsWith(text) && word.insert.toLowerCase() !== text;
        const found = words.filter(fits);
        return found.sort((a, b) => b.name.toLowerCase().startsWith(text) - a.name.toLowerCase().startsWith(text)).slice(0, MOST);
    }

    function close() {
        list.hidden = true;
        if (field) {
            field.removeAttribute("aria-activedescendant");
        }
        field = null;
    }

    function mark(place) {
        chosen = (place + shown.length) % shown.length;
        [...list.children].forEach((item, number) => item.setAttribute("aria-selected", String(number === chosen)));
        field.setAttribute("aria-activedescendant", `lycoris_complete_${chosen}`);
    }

    function draw(area) {
        list.replaceChildren(...shown.map((word, number) => {
            const item = document.createElement("li");
            item.id = `lycoris_complete_${number}`;
            item.setAttribute("role", "option");
            const name = document.createElement("b");
            name.textContent = word.name;
            const about = document.createElement("span");
            about.textContent = word.about;
            item.append(name, about);
            item.addEventListener("mousedown", event => {
                event.preventDefault();
                accept(number);
            });
            return item;
        }));
        const place = area.getBoundingClientRect();
        list.style.left = `${place.left + window.scrollX}px`;
        list.style.top = `${place.bottom + window.scrollY}px`;
        list.style.minWidth = `${Math.min(place.width, 320)}px`;
        document.body.append(list);
        list.hidden = false;
        field = area;
        area.setAttribute("aria-controls", list.id);
        area.setAttribute("aria-autocomplete", "list");
        mark(0);
    }

    function accept(number) {
        const area = field;
        const word = shown[number];
        close();
        let end = area.selectionStart;
        if (word.kind === "network") { // what is left of an older tag behind the caret goes with it
            const rest = /^[^<>]*>/.exec(area.value.slice(end));
            end += rest ? rest[0].length : 0;
        }
        area.setRangeText(word.insert, start, end, "end");
        area.dispatchEvent(new Event("input", {bubbles: true}));
        area.focus();
    }

    async function look(area) {
        await refresh();
        const found = typed(area);
        shown = found ? matching(found[1], found[2]) : [];
        if (!shown.length || document.activeElement !== area) {
            close();
            return;
        }
        start = found[0];
        draw(area);
    }

    document.addEventListener("input", event => {
        if (event.isTrusted && event.target.matches(FIELDS)) {
            look(event.target);
        }
    });
    document.addEventListener("keydown", event => {
        if (!field || event.target !== field) {
            return;
        }
        const keys = {ArrowDown: () => mark(chosen + 1), ArrowUp: () => mark(chosen - 1), Enter: () => accept(chosen), Tab: () => accept(chosen), Escape: close};
        if (Object.hasOwn(keys, event.key) && !event.shiftKey && !event.ctrlKey) {
            event.preventDefault();
            event.stopPropagation();
            keys[event.key]();
        }
    }, true);
    document.addEventListener("focusout", event => {
        if (event.target === field) {
            close();
        }
    });
})();
