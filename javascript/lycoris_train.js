// The tab "Lyco" is kept up to date by pressing its own buttons: the host may run without gradio's queue. While a training has the model, a line in the
// other tabs says that pictures wait for it.

(function() {
    const often = 2000;
    const seldom = 10000;
    const BUSY = ["preparing", "running", "pausing", "stopping"];
    let last = 0;
    let restored = false;

    function find(id) {
        return gradioApp().querySelector("#" + id);
    }

    // What is said of the training now, where pictures have to wait for it; else nothing. Told by its phase: all words may be translated.
    function waiting() {
        const words = gradioApp().querySelector("#lycoris_progress [data-phase]");
        return words && BUSY.includes(words.dataset.phase) ? words.textContent.trim() : "";
    }

    // A line beneath the button Generate of each tab, put there once and filled as text.
    function tell(words) {
        for (const tab of ["txt2img", "img2img"]) {
            const box = find(tab + "_generate_box");
            let line = find(tab + "_lycoris_waits");
            if (!line && words && box) {
                line = document.createElement("p");
                line.id = tab + "_lycoris_waits";
                line.className = "lyco-waits";
                line.setAttribute("role", "status");
                box.after(line);
            }
            if (line && line.textContent !== words) {
                line.textContent = words;
                line.hidden = !words;
            }
        }
    }

    function press() {
        const button = find("lycoris_refresh");
        if (!button || document.hidden) {
            return;
        }
        if (!restored) { // not at once: the host's page listens to its buttons a moment after it has drawn them
            restored = true;
            find("lycoris_restore").click();
        }
        const shown = button.offsetParent !== null;
        if (shown || Date.now() - last >= seldom) {
            last = Date.now();
            button.click();
        }
        for (const poll of gradioApp().querySelectorAll("button.lycoris-poll")) {
            if (poll.offsetParent !== null) {
                poll.click();
            }
        }
        const words = waiting();
        tell(words ? `Pictures wait: ${words}. Pause it in the tab Lyco to go first.` : "");
    }

    onUiLoaded(function() {
        setInterval(press, often);
    });
})();
