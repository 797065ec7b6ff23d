-- MySQL 8.0.4 or newer, MariaDB 10.6 or newer. On an empty database this makes everything; on one that a node
-- has made already it changes nothing. A node does the same at its start, and brings older databases up to date.
-- Times are milliseconds since 1970 by the server's clock. Keys are VARBINARY: they compare as bytes.
-- payload, result, error and progress are JSON as text, kept as it was written.

CREATE TABLE IF NOT EXISTS schema_version (
  id      TINYINT NOT NULL PRIMARY KEY,
  version INT     NOT NULL
) ENGINE=InnoDB;

-- sweep_at: PENDING: when to look whether it was forgotten; PROCESSING: when it should have ended; ended: when.
-- log_count: the number of the last row in its log; negative while the row of its claim, the next one, is owed: what
-- that says stands here, and becomes a row with the next one that is written.
-- parent_id, expires_at: of a child, and the deadline that it has from its parent. children: it has had some; their
-- idempotency keys are made of its id and a number.
-- slack: given up as other columns fill: a row that grows costs the splitting of a page, several times the update.
CREATE TABLE IF NOT EXISTS task (
  task_id             VARBINARY(64)  NOT NULL PRIMARY KEY,
  task_type           VARBINARY(128) NOT NULL,
  status              VARBINARY(10)  NOT NULL,
  priority            TINYINT        NOT NULL,
  payload             MEDIUMTEXT     NOT NULL,
  timeout             DOUBLE         NOT NULL,
  max_retry           INT            NOT NULL,
  attempt             INT            NOT NULL DEFAULT 0,
  retry_count         INT            NOT NULL DEFAULT 0,
  recoveries          INT            NOT NULL DEFAULT 0,
  releases            INT            NOT NULL DEFAULT 0,
  worker_id           VARBINARY(64),
  worker_epoch        BIGINT,
  created_at          BIGINT         NOT NULL,
  due_at              BIGINT         NOT NULL,
  scheduled_at        BIGINT,
  started_at          BIGINT,
  completed_at        BIGINT,
  cancel_requested_at BIGINT,
  sweep_at            BIGINT         NOT NULL,
  result              MEDIUMTEXT,
  error               MEDIUMTEXT,
  progress            MEDIUMTEXT,
  idempotency_key     VARBINARY(255),
  log_count           INT            NOT NULL DEFAULT 0,
  slack               VARBINARY(255) NOT NULL,
  parent_id           VARBINARY(64),
  expires_at          BIGINT,
  children            TINYINT        NOT NULL DEFAULT 0,
  KEY task_live (status, priority, sweep_at, task_id, worker_epoch, task_type),
  KEY task_type_newest (task_type, task_id),
  UNIQUE KEY task_idempotency (idempotency_key)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- log_id counts within the task. task_id first: a task's log lies together.
CREATE TABLE IF NOT EXISTS task_logs (
  task_id     VARBINARY(64) NOT NULL,
  log_id      INT           NOT NULL,
  log_type    VARBINARY(16) NOT NULL,
  from_status VARBINARY(10),
  to_status   VARBINARY(10),
  message     MEDIUMTEXT    NOT NULL,
  worker_id   VARBINARY(64),
  attempt     INT,
  created_at  BIGINT        NOT NULL,
  PRIMARY KEY (task_id, log_id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- One row a configured task type: its settings as JSON. limited: it has a cap or is disabled.
CREATE TABLE IF NOT EXISTS task_config (
  task_type VARBINARY(128) NOT NULL PRIMARY KEY,
  settings  MEDIUMTEXT     NOT NULL,
  limited   TINYINT        NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- One row a lease. state: ALIVE, then LOST or GONE for ever. boot_id: the process that has it.
CREATE TABLE IF NOT EXISTS worker_registry (
  epoch       BIGINT        NOT NULL AUTO_INCREMENT PRIMARY KEY,
  worker_id   VARBINARY(64) NOT NULL,
  boot_id     VARBINARY(36) NOT NULL,
  state       VARBINARY(8)  NOT NULL,
  capacity    INT           NOT NULL,
  task_types  MEDIUMTEXT    NOT NULL,
  started_at  BIGINT        NOT NULL,
  lease_until BIGINT        NOT NULL,
  KEY worker_registry_worker (worker_id, epoch),
  KEY worker_registry_state (state, lease_until)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;

-- Who leads while no coordinator can be reached.
CREATE TABLE IF NOT EXISTS leader (
  id       TINYINT NOT NULL PRIMARY KEY,
  holder   VARBINARY(128),
  until_at BIGINT  NOT NULL,
  epoch    BIGINT  NOT NULL
) ENGINE=InnoDB;

INSERT IGNORE INTO leader VALUES (1, NULL, 0, 0);
INSERT IGNORE INTO schema_version VALUES (1, 2);
