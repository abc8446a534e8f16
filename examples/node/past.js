// What was in a replica after a transaction, with Node's own SQLite, which takes URIs (Node 22.13 or newer):
//
//     EXTENSION=/path/to/libreplvfs.so node past.js fs:///folder/for/the/replicas/notes.db 3
'use strict';
const { DatabaseSync } = require('node:sqlite');

const [replica, txid] = process.argv.slice(2);
const loader = new DatabaseSync(':memory:', { allowExtension: true });
loader.loadExtension(process.env.EXTENSION);
loader.close();

const db = new DatabaseSync(`file:notes?vfs=replvfs-remote&replica=${encodeURIComponent(replica)}&txid=${txid}`);
for (const { id, text } of db.prepare('SELECT id, text FROM note ORDER BY id').all()) console.log(id, text);
db.close();
