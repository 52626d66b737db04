// The tab "Lyco" shows how work stands: while it is open, the Refresh button of what is seen is pressed every now and then.

(function() {
    const milliseconds = 2000;

    onUiLoaded(function() {
        setInterval(function() {
            for (const button of gradioApp().querySelectorAll("#lycoris_refresh, button.lycoris-poll")) {
                if (button.offsetParent !== null && !document.hidden) {
                    button.click();
                }
            }
        }, milliseconds);
    });
})();
