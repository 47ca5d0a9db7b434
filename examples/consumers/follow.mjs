// Follows a dataset with the EventSource that browsers have; `node.mjs` uses it outside of one.
//
// In a browser, which sends no headers of its own with an EventSource, put a route of your own server
// in front that adds the token:
//
//     import { follow } from './follow.mjs';
//     follow({
//         EventSource,
//         url: '/feed?datasets=shop.public.orders',
//         after: localStorage.position ?? 'snapshot',
//         handle(event, position) { show(event); localStorage.position = position; },
//     });

const EVENTS = ['change', 'schema', 'ownership', 'gap', 'snapshot'];
const PAUSE = 1000;

/** Calls `handle(event, position)` for every event after a position; gives a function that ends it. */
export function follow({ EventSource, url, after, handle, options }) {
    let position = after;
    let source;
    let again;

    function open() {
        const separator = url.includes('?') ? '&' : '?';
        const address = `${url}${separator}after=${encodeURIComponent(position)}`;
        source = new EventSource(address, options);
        for (const name of EVENTS) {
            source.addEventListener(name, ({ data, lastEventId }) => {
                handle(JSON.parse(data), lastEventId);
                position = lastEventId;
            });
        }
        source.addEventListener('error', failed);
    }

    // A cut connection is the EventSource's to mend: it comes back by itself, with Last-Event-ID. What
    // it does not come back from is an answer other than 200, such as that of a server which is about
    // to start: then it closes for good, and somebody has to open another.
    function failed({ data, code }) {
        const status = data ? JSON.parse(data).status : code;
        if (status === 410) {
            // The log does not go back that far any more: begin anew with the rows as they are.
            position = 'snapshot';
        } else if (source.readyState !== source.CLOSED) {
            return;
        }
        source.close();
        clearTimeout(again);
        again = setTimeout(open, PAUSE);
    }

    open();
    return () => {
        clearTimeout(again);
        source.close();
    };
}
