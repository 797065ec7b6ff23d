-- The embedded store: one file, the twin of schema.sql. Times are milliseconds since 1970.
-- `seq` is a task's short name inside this file: it keeps indexes and log rows small.
CREATE TABLE task (
  seq                 INTEGER PRIMARY KEY,
  task_id             TEXT NOT NULL UNIQUE,
  task_type           TEXT NOT NULL,
  status              TEXT NOT NULL,
  priority            INTEGER NOT NULL,
  payload             TEXT NOT NULL,
  timeout             REAL NOT NULL,
  max_retry           INTEGER NOT NULL,
  attempt             INTEGER NOT NULL DEFAULT 0,
  retry_count         INTEGER NOT NULL DEFAULT 0,
  recoveries          INTEGER NOT NULL DEFAULT 0,
  releases            INTEGER NOT NULL DEFAULT 0,
  worker_id           TEXT,
  worker_epoch        INTEGER,
  created_at          INTEGER NOT NULL,
  due_at              INTEGER NOT NULL,
  scheduled_at        INTEGER,
  started_at          INTEGER,
  completed_at        INTEGER,
  cancel_requested_at INTEGER,
  sweep_at            INTEGER,
  result              TEXT,
  error               TEXT,
  progress            TEXT,
  idempotency_key     TEXT,
  parent_id           TEXT,
  expires_at          INTEGER,
  children            INTEGER NOT NULL DEFAULT 0
);

-- Live work only: claims by sweep, recovery, the lists of waiting and running tasks.
CREATE INDEX task_live ON task (status, priority, sweep_at) WHERE sweep_at IS NOT NULL;
CREATE INDEX task_type_newest ON task (task_type, task_id);
CREATE INDEX task_unsuccessful ON task (status, task_id) WHERE status IN ('FAILED', 'TIMEOUT', 'CANCELLED');
CREATE INDEX task_ended ON task (completed_at) WHERE completed_at IS NOT NULL;
CREATE UNIQUE INDEX task_idempotency ON task (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- Of the task with this seq.
CREATE TABLE task_logs (
  seq         INTEGER NOT NULL,
  log_id      INTEGER NOT NULL,
  log_type    TEXT NOT NULL,
  from_status TEXT,
  to_status   TEXT,
  message     TEXT NOT NULL,
  worker_id   TEXT,
  attempt     INTEGER,
  created_at  INTEGER NOT NULL,
  PRIMARY KEY (seq, log_id)
) WITHOUT ROWID;

-- One row a configured task type: its settings as JSON, read whole at start.
CREATE TABLE task_config (
  task_type TEXT NOT NULL PRIMARY KEY,
  settings  TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE worker_registry (
  worker_id  TEXT NOT NULL,
  epoch      INTEGER NOT NULL,
  state      TEXT NOT NULL,
  capacity   INTEGER NOT NULL,
  task_types TEXT NOT NULL,
  started_at INTEGER NOT NULL,
  PRIMARY KEY (worker_id, epoch)
) WITHOUT ROWID;

CREATE TABLE counter (
  name  TEXT NOT NULL PRIMARY KEY,
  value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO counter VALUES ('log_id', 1), ('epoch', 0);
