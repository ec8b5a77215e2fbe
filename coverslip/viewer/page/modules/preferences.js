// What a person has chosen, kept in this browser.

const PREFIX = "coverslip.";

/** A kept choice, or `otherwise` where there is none or this browser keeps nothing. */
export function preference(name, otherwise) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

/** Keep a choice; a browser that keeps nothing forgets it with the page. */
export function keep(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // private windows and full disks: the choice holds until the page is closed
  }
}
