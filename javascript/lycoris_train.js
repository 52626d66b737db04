// The tab "Lyco" shows how a training stands: while it is open, its Refresh button is pressed every now and then.

(function() {
    const milliseconds = 2000;

    onUiLoaded(function() {
        setInterval(function() {
            const button = gradioApp().querySelector("#lycoris_refresh");
            if (button && button.offsetParent !== null && !document.hidden) {
                button.click();
            }
        }, milliseconds);
    });
})();
