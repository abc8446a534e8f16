// The hosts "Node, better-sqlite3" and "Node, node:sqlite" of tests/hosts/table.py, which tells what each command is to do.
//
// better-sqlite3 takes no URIs, so that REPLVFS_DEFAULT=1 and a configuration file choose what is replicated.
'use strict';
const { Worker, isMainThread, workerData } = require('node:worker_threads');

const [module_, command, name] = isMainThread ? process.argv.slice(2) : workerData;

function open(path) {
	if (module_ === 'better-sqlite3') {
		const Database = require('better-sqlite3');
		return new Database(path, { fileMustExist: process.env.MUST_EXIST === '1', timeout: 60000 });
	}
	const { DatabaseSync } = require('node:sqlite');
	const db = new DatabaseSync(path, { allowExtension: true });
	db.exec('PRAGMA busy_timeout=60000');
	return db;
}

function load() {
	const loader = open(':memory:');
	loader.loadExtension(process.env.EXTENSION);
	loader.close();
}

const value = (db, sql) => Object.values(db.prepare(sql).get())[0];
const say = (...words) => require('node:fs').writeSync(1, `${words.join(' ')}\n`);

function transactions(db, count) {
	const insert = db.prepare('INSERT INTO t(v) VALUES (hex(randomblob(50)))');
	for (let n = 0; n < count; n++) {
		db.exec('BEGIN IMMEDIATE');
		for (let row = 0; row < 20; row++) insert.run();
		db.exec('COMMIT');
	}
}

const flush = (db) => say('flushed', value(db, 'PRAGMA replvfs_flush'));
const show = (db) => say('rows', ...Object.values(db.prepare('SELECT count(*), sum(id) FROM t').get()));

function worker() {
	load();
	const db = open(name);
	transactions(db, 5);
	db.close();
}

function threads() {
	const one = () => new Promise((resolve, reject) => {
		const started = new Worker(__filename, { workerData: [module_, command, name] });
		started.on('error', reject);
		started.on('exit', (code) => (code === 0 ? resolve() : reject(new Error(`a worker ended with ${code}`))));
	});
	return Promise.all([one(), one(), one(), one()]);
}

async function run() {
	load();
	const db = open(name);
	if (command === 'write') {
		say('sqlite', value(db, 'SELECT sqlite_version()'));
		if (value(db, 'PRAGMA journal_mode=WAL') !== 'wal') throw new Error('no WAL');
		db.exec('CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)');
		transactions(db, 5);
		flush(db);
		transactions(db, 3);
		say('waiting');
		Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
	} else if (command === 'resume') {
		show(db);
		transactions(db, 1);
		flush(db);
	} else if (command === 'read') {
		show(db);
	} else if (command === 'threads') {
		value(db, 'PRAGMA journal_mode=WAL');
		db.exec('CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)');
		await threads();
		flush(db);
		show(db);
	} else {
		value(db, 'PRAGMA schema_version');
	}
	db.close();
}

async function main() {
	if (command !== 'refuse') return run();
	let refusal = null;
	await run().catch((error) => (refusal = error));
	if (refusal === null) throw new Error('it was not refused');
	say(`refused: ${refusal.message}`);
}

if (isMainThread) main();
else worker();
