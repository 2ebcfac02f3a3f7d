"""A browser for tests: headless Chromium, told over two pipes what to open, press and answer."""
import base64
import json
import os
import select
import shutil
import subprocess
import time

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 30  # for any answer; only a failing test waits so long
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-default-apps --disable-sync --disable-extensions
    --disable-dev-shm-usage --no-proxy-server --hide-scrollbars --remote-debugging-pipe""".split()
KEYS = {  # those that have no character: the code that pages and the browser know them by
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "PageUp": 33, "PageDown": 34,
    "Home": 36, "End": 35, "Enter": 13, "Escape": 27, "Tab": 9}

needs_chromium = pytest.mark.skipif(not CHROMIUM or os.name == "nt",
                                    reason="needs chromium (on Debian and Ubuntu: apt install chromium)")


class Browser:
    """A Chromium of its own, with one page; the folder is for its profile."""

    # It reads commands from its descriptor 3 and answers on 4, each a JSON object and a NUL.

    def __init__(self, folder, *flags):
        self.buffer, self.last_id = b"", 0
        self.errors, self.requests = [], []  # what the page complained of, and what it asked the network for
        reading, self.to_browser = os.pipe()
        self.from_browser, writing = os.pipe()

        def place_pipes():
            # By way of copies, since either may stand where the other has to go.
            os.dup2(reading, 100)
            os.dup2(writing, 101)
            os.dup2(100, 3)
            os.dup2(101, 4)

        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", *flags, "about:blank"], pass_fds=(3, 4),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=place_pipes)
        os.close(reading)
        os.close(writing)
        self.session = self.url = None
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self):
        pages = self.call("Target.getTargets")["targetInfos"]
        page = next(page["targetId"] for page in pages if page["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *trouble):
        self.close()

    def close(self):
        """End the browser, and only this one."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for end in (self.to_browser, self.from_browser):
            os.close(end)

    # --- commands and events ---

    def call(self, method, **parameters):
        """Give the browser a command and return its answer."""
        self.last_id += 1
        command = {"id": self.last_id, "method": method, "params": parameters}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(command).encode() + b"\0")
        while True:
            message = self._hear()
            if message.get("id") == self.last_id:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    def _hear(self):
        until = time.monotonic() + SECONDS
        while b"\0" not in self.buffer:
            ready = select.select([self.from_browser], [], [], max(0.0, until - time.monotonic()))[0]
            data = os.read(self.from_browser, 1 << 20) if ready else b""
            assert data, f"the browser {'has ended' if ready else 'does not answer'}"
            self.buffer += data
        line, rest = self.buffer.split(b"\0", 1)
        self.buffer, message = rest, json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method, event):
        if method == "Runtime.exceptionThrown":
            thrown = event["exceptionDetails"]
            self.errors.append(thrown.get("exception", thrown).get("description") or thrown["text"])
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(value.get("value")) for value in event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.errors.append(event["entry"]["text"])
        elif method == "Network.requestWillBeSent" and event["request"]["url"].split("#")[0] != self.url:
            self.requests.append(event["request"]["url"])

    # --- the page ---

    def open(self, path, fragment=""):
        """Open this file as a fresh page; what the last one complained of is forgotten."""
        self.url = "about:blank"
        self.call("Page.navigate", url=self.url)  # or another fragment would not load the page again
        self.url, self.errors, self.requests = path.resolve().as_uri(), [], []
        self.call("Page.navigate", url=self.url + fragment)
        self.wait_until("location.protocol == 'file:' && document.readyState == 'complete'")

    def run(self, script):
        """The value of this JavaScript, as the console would give it; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True,
                           userGesture=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_until(self, condition):
        """Wait until this JavaScript is true."""
        until = time.monotonic() + SECONDS
        asked = f"""new Promise(resolve => {{
            let tries = 40;
            const look = () => {condition} ? resolve(true) : --tries ? setTimeout(look, 5) : resolve(false);
            look();
        }})"""
        while not self.run(asked):
            assert time.monotonic() < until, f"it never came to pass that {condition}"

    def press(self, key, place=""):
        """Press one key: a character, or one of those in KEYS; its place is such as "KeyG"."""
        number = KEYS.get(key) or ord(key.upper())
        text = {} if key in KEYS and key != "Enter" else {"text": "\r" if key == "Enter" else key}
        about = {"key": key, "code": place, "windowsVirtualKeyCode": number}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text):
        """Put this text in where the caret is."""
        self.call("Input.insertText", text=text)

    def click(self, selector, number=0):
        """Click in the middle of an element: the first that fits, or one of the following."""
        x, y = self.run(f"""{{
            const element = document.querySelectorAll({json.dumps(selector)})[{number}];
            element.scrollIntoView({{block: "nearest"}});
            const box = element.getBoundingClientRect();
            [box.x + box.width / 2, box.y + box.height / 2];
        }}""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    # --- where and how it is looked at ---

    def resize(self, width, height, phone=False):
        """Give the page another size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, mobile=phone,
                  deviceScaleFactor=1)

    def look(self, media="", dark=False, still=False):
        """Choose what the page is shown on: screen or print, a dark scheme, reduced motion."""
        self.call("Emulation.setEmulatedMedia", media=media, features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else ""}])

    def speak(self, language):
        """Have the browser's person prefer this language, in pages opened from now on."""
        agent = self.run("navigator.userAgent")
        self.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
        self.call("Emulation.setLocaleOverride", locale=language)

    def screenshot(self, path):
        """What can be seen of the page, as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def pdf(self):
        """The page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])


def measure_page(browser, page):
    """Seconds until a page that plays a session has opened; milliseconds of the slowest of some answers."""
    # An answer is there when the frame after the next one begins: by then the first has been painted.
    begin = time.monotonic()
    browser.open(page)
    opened = time.monotonic() - begin
    slowest = """async act => {
        let slowest = 0;
        for (let number = 0; number < 40; number++) {
            const begin = performance.now();
            act(number / 40);
            for (let frames = 0; frames < 2; frames++) await new Promise(requestAnimationFrame);
            slowest = Math.max(slowest, performance.now() - begin);
        }
        return slowest;
    }"""
    seek = browser.run(f"""({slowest})(share => {{
        const bar = document.getElementById("seek");
        bar.value = (share * 7 % 1) * bar.max;
        bar.dispatchEvent(new Event("input"));
    }})""")
    scroll = browser.run(f"""({slowest})(share => {{
        for (const log of document.querySelectorAll(".log")) log.scrollTop -= 2000;
    }})""")
    search = browser.run(f"""({slowest})(share => {{
        const query = document.getElementById("query");
        query.value = "lorem ipsum".slice(0, 1 + share * 10);
        query.dispatchEvent(new Event("input"));
    }})""")
    return {"opened s": opened, "seek ms": seek, "scroll ms": scroll, "search ms": search}
