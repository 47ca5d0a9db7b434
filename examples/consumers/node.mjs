// Follows a dataset from Node.js with the package `eventsource`, which is the browsers' EventSource.
//
//     npm install eventsource
//     CADASTRE_URL=http://localhost:7400 CADASTRE_TOKEN=… \
//         node node.mjs shop.public.orders position.txt
//
// The first run begins with the rows as they are, a later one after the position in the file.

import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { EventSource } from 'eventsource';
import { follow } from './follow.mjs';

const [dataset, path] = process.argv.slice(2);
const authorization = `Bearer ${process.env.CADASTRE_TOKEN}`;

follow({
    EventSource,
    url: `${process.env.CADASTRE_URL}/v1/feed?datasets=${encodeURIComponent(dataset)}`,
    after: existsSync(path) ? readFileSync(path, 'utf8') : 'snapshot',
    // An event may come again after a crash: recognise it by its position.
    handle(event, position) {
        console.log(JSON.stringify(event));
        writeFileSync(`${path}.new`, position, { flush: true });
        renameSync(`${path}.new`, path);
    },
    options: {
        fetch: (address, init) =>
            fetch(address, { ...init, headers: { ...init.headers, authorization } }),
    },
});
