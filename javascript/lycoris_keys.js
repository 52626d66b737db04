// gradio 3.41 draws the heads of folded parts and the fields for files for the mouse alone. In the tab "Lyco" and in the accordions for adapters they become
// buttons, for the keyboard and for screen readers.

(function() {
    const OURS = ["#tab_lycoris", ".lyco-adapters"];
    const all = kind => OURS.map(place => `${place} ${kind}`).join(", ");
    const parts = all(".label-wrap");
    const files = [all(".gradio-file .center.flex"), all(".gradio-image .center.flex")].join(", ");

    function tellWhetherOpen(part) {
        part.setAttribute("aria-expanded", String(part.classList.contains("open")));
    }

    function mark() {
        for (const part of gradioApp().querySelectorAll(`${parts}, ${files}`)) {
            part.tabIndex = 0;
            part.setAttribute("role", "button");
            if (part.matches(parts)) {
                tellWhetherOpen(part);
            }
        }
    }

    document.addEventListener("keydown", function(event) {
        if ((event.key === "Enter" || event.key === " ") && event.target.matches(`${parts}, ${files}`)) {
            event.preventDefault();
            event.target.click();
        }
    });

    document.addEventListener("click", function(event) {
        const part = event.target.closest && event.target.closest(parts);
        if (part) {
            setTimeout(() => tellWhetherOpen(part), 100); // gradio folds and unfolds it a moment later
        }
    });

    onUiLoaded(mark);
    onAfterUiUpdate(mark);
})();
