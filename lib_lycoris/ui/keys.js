// Lists of which one is chosen, by keyboard as everywhere: gradio gives each button of such a list a name of its own, so that the browser does not know that
// they belong together. With one name for all, the arrow keys walk in the list and Tab goes to it and out of it again.
document.addEventListener("keydown", function(event) {
    const list = event.target.type === "radio" && event.target.closest(".block");
    if (list) {
        for (const button of list.querySelectorAll("input[type=radio]")) {
            button.name = list.id;
        }
    }
}, true);
