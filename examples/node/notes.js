// Notes in a replicated database, with better-sqlite3:
//
//     EXTENSION=/path/to/libreplvfs.so node notes.js fs:///folder/for/the/replicas/{name} "buy milk"
//
// better-sqlite3 takes no URIs: "file:notes.db?vfs=replvfs" would be the name of a file. So replvfs is the default VFS here, and replicates what the environment,
// or a configuration file named by REPLVFS_CONFIG, has a replica for. A program would rather leave the environment to whoever starts it.
'use strict';
const Database = require('better-sqlite3');

const [replica, ...texts] = process.argv.slice(2);
process.env.REPLVFS_DEFAULT = '1';
// {name} in it stands for the database's file name, since this is for all databases of the process.
process.env.REPLVFS_REPLICA = replica;

// Once, before the database is opened. Worker threads need not load it again, and may.
const loader = new Database(':memory:');
loader.loadExtension(process.env.EXTENSION);
loader.close();

const db = new Database('notes.db');
db.pragma('journal_mode = WAL');
db.exec('CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, text TEXT NOT NULL)');
const insert = db.prepare('INSERT INTO note (text) VALUES (?)');
for (const text of texts) insert.run(text);

// Waits, and so does the thread: an application that only wants to know how far it is asks for replvfs_acked.
const txid = db.pragma('replvfs_flush', { simple: true });
console.log('transaction', txid, 'is in the replica');
for (const { id, text } of db.prepare('SELECT id, text FROM note ORDER BY id').all()) console.log(id, text);
db.close();
