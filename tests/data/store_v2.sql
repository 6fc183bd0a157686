-- A store of version 2 with one trial complete after two attempts, one failed and one running.
CREATE TABLE diffs (
    sha256 VARCHAR(64) NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (sha256)
);
CREATE TABLE invocations (
    id INTEGER NOT NULL,
    command TEXT NOT NULL,
    started DATETIME NOT NULL,
    ended DATETIME,
    host VARCHAR(255) NOT NULL,
    pid INTEGER NOT NULL,
    provenance JSON NOT NULL,
    mlflow_run_id VARCHAR(64),
    PRIMARY KEY (id)
);
CREATE TABLE meta (
    name VARCHAR(64) NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE studies (
    name VARCHAR(200) NOT NULL,
    profile VARCHAR(200) NOT NULL,
    data_name VARCHAR(200) NOT NULL,
    added DATETIME NOT NULL,
    paused BOOLEAN DEFAULT FALSE NOT NULL,
    PRIMARY KEY (name, profile, data_name)
);
CREATE TABLE writers (
    id VARCHAR(32) NOT NULL,
    last INTEGER NOT NULL,
    time DATETIME NOT NULL,
    PRIMARY KEY (id)
);
CREATE TABLE trials (
    "key" VARCHAR(12) NOT NULL,
    study VARCHAR(200) NOT NULL,
    profile VARCHAR(200) NOT NULL,
    data_name VARCHAR(200) NOT NULL,
    name TEXT NOT NULL,
    tables JSON NOT NULL,
    config TEXT NOT NULL,
    seed INTEGER NOT NULL,
    state VARCHAR(16) NOT NULL,
    step INTEGER NOT NULL,
    total INTEGER NOT NULL,
    error TEXT,
    added DATETIME NOT NULL,
    priority INTEGER DEFAULT '0' NOT NULL,
    micro_batch INTEGER,
    PRIMARY KEY ("key"),
    FOREIGN KEY(study, profile, data_name) REFERENCES studies (name, profile, data_name)
);
CREATE INDEX ix_trials_setting ON trials (study, profile, data_name);
CREATE INDEX ix_trials_state ON trials (state);
CREATE TABLE attempts (
    id INTEGER NOT NULL,
    trial_key VARCHAR(12) NOT NULL,
    number INTEGER NOT NULL,
    invocation_id INTEGER,
    state VARCHAR(16) NOT NULL,
    owner VARCHAR(255) NOT NULL,
    host VARCHAR(255) NOT NULL,
    pid INTEGER NOT NULL,
    started DATETIME NOT NULL,
    heartbeat DATETIME NOT NULL,
    ended DATETIME,
    error TEXT,
    provenance JSON NOT NULL,
    environment JSON,
    first_step INTEGER,
    first_progress DATETIME,
    last_step INTEGER,
    last_progress DATETIME,
    last_metric INTEGER DEFAULT '0' NOT NULL,
    mlflow_run_id VARCHAR(64),
    mirrored_upto INTEGER NOT NULL,
    mirrored_state VARCHAR(16),
    PRIMARY KEY (id),
    UNIQUE (trial_key, number),
    FOREIGN KEY(trial_key) REFERENCES trials ("key"),
    FOREIGN KEY(invocation_id) REFERENCES invocations (id)
);
CREATE INDEX ix_attempts_invocation_id ON attempts (invocation_id);
CREATE INDEX ix_attempts_state ON attempts (state);
CREATE INDEX ix_attempts_to_mirror ON attempts (id) WHERE mirrored_state IS NULL OR mirrored_state != state OR mirrored_upto < last_metric;
CREATE INDEX ix_attempts_trial_key ON attempts (trial_key);
CREATE TABLE evaluations (
    "key" VARCHAR(12) NOT NULL,
    trial_key VARCHAR(12) NOT NULL,
    config TEXT NOT NULL,
    attempt_id INTEGER,
    metrics JSON,
    time DATETIME,
    PRIMARY KEY ("key"),
    FOREIGN KEY(trial_key) REFERENCES trials ("key"),
    FOREIGN KEY(attempt_id) REFERENCES attempts (id)
);
CREATE INDEX ix_evaluations_attempt_id ON evaluations (attempt_id);
CREATE INDEX ix_evaluations_trial_key ON evaluations (trial_key);
CREATE TABLE metrics (
    id INTEGER NOT NULL,
    attempt_id INTEGER NOT NULL,
    step INTEGER NOT NULL,
    name VARCHAR(100) NOT NULL,
    value FLOAT,
    time DATETIME NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(attempt_id) REFERENCES attempts (id)
);
CREATE INDEX ix_metrics_attempt ON metrics (attempt_id, id);
CREATE TABLE notices (
    id INTEGER NOT NULL,
    attempt_id INTEGER NOT NULL,
    message TEXT NOT NULL,
    time DATETIME NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(attempt_id) REFERENCES attempts (id)
);
CREATE INDEX ix_notices_attempt_id ON notices (attempt_id);
CREATE TABLE artifacts (
    id INTEGER NOT NULL,
    trial_key VARCHAR(12) NOT NULL,
    attempt_id INTEGER NOT NULL,
    evaluation_key VARCHAR(12),
    kind VARCHAR(100) NOT NULL,
    path TEXT NOT NULL,
    sha256 VARCHAR(64),
    step INTEGER,
    time DATETIME NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(trial_key) REFERENCES trials ("key"),
    FOREIGN KEY(attempt_id) REFERENCES attempts (id),
    FOREIGN KEY(evaluation_key) REFERENCES evaluations ("key")
);
CREATE INDEX ix_artifacts_evaluation_key ON artifacts (evaluation_key);
CREATE INDEX ix_artifacts_trial_key ON artifacts (trial_key);

INSERT INTO meta VALUES ('schema_version', '2');
INSERT INTO studies VALUES ('atss', 'smoke', 'shapes-1', '2026-01-01 09:00:00.000000', FALSE);
INSERT INTO trials VALUES
    ('aaaaaaaaaaaa', 'atss', 'smoke', 'shapes-1', 'row a', '["table1"]', '{"seed":0}', 0, 'COMPLETE', 40, 40, NULL, '2026-01-01 09:00:00.000000', 0, NULL),
    ('bbbbbbbbbbbb', 'atss', 'smoke', 'shapes-1', 'row b', '["table1"]', '{"seed":1}', 1, 'FAILED', 0, 0, 'Traceback: boom', '2026-01-01 09:00:00.000000', 0, NULL),
    ('cccccccccccc', 'atss', 'smoke', 'shapes-1', 'row c', '["table1"]', '{"seed":2}', 2, 'RUNNING', 10, 40, NULL, '2026-01-01 09:00:00.000000', 0, NULL);
INSERT INTO invocations (command, started, ended, host, pid, provenance, mlflow_run_id) VALUES
    ('ablation run', '2026-01-01 09:00:00.000000', NULL, 'host', 1, '{"commit": "c0ffee"}', NULL);
INSERT INTO attempts (trial_key, number, invocation_id, state, owner, host, pid, started, heartbeat, ended, error, provenance, first_step, first_progress, last_step, last_progress, last_metric, mlflow_run_id, mirrored_upto, mirrored_state) VALUES
    ('aaaaaaaaaaaa', 1, 1, 'INTERRUPTED', 'host:1', 'host', 1, '2026-01-01 09:00:00.000000', '2026-01-01 09:00:20.000000', '2026-01-01 09:00:21.000000', NULL, '{"commit": "c0ffee"}', 10, '2026-01-01 09:00:10.000000', 20, '2026-01-01 09:00:20.000000', 2, 'run1', 2, 'INTERRUPTED'),
    ('aaaaaaaaaaaa', 2, 1, 'COMPLETE', 'host:1', 'host', 1, '2026-01-01 09:01:00.000000', '2026-01-01 09:01:40.000000', '2026-01-01 09:01:50.000000', NULL, '{"commit": "c0ffee"}', 30, '2026-01-01 09:01:10.000000', 40, '2026-01-01 09:01:40.000000', 4, 'run2', 3, 'RUNNING'),
    ('bbbbbbbbbbbb', 1, 1, 'FAILED', 'host:1', 'host', 1, '2026-01-01 09:02:00.000000', '2026-01-01 09:02:00.000000', '2026-01-01 09:02:01.000000', 'Traceback: boom', '{"commit": "c0ffee"}', NULL, NULL, NULL, NULL, 0, NULL, 0, NULL),
    ('cccccccccccc', 1, 1, 'RUNNING', 'host:1', 'host', 1, '2026-01-01 09:03:00.000000', '2026-01-01 09:03:10.000000', NULL, NULL, '{"commit": "c0ffee"}', 10, '2026-01-01 09:03:10.000000', 10, '2026-01-01 09:03:10.000000', 5, NULL, 0, NULL);
INSERT INTO metrics (attempt_id, step, name, value, time) VALUES
    (1, 10, 'loss', 2.0, '2026-01-01 09:00:10.000000'),
    (1, 20, 'loss', 1.5, '2026-01-01 09:00:20.000000'),
    (2, 30, 'loss', 1.0, '2026-01-01 09:01:10.000000'),
    (2, 40, 'loss', NULL, '2026-01-01 09:01:40.000000'),
    (4, 10, 'loss', 2.5, '2026-01-01 09:03:10.000000');
INSERT INTO evaluations VALUES
    ('eeeeeeeeeeee', 'aaaaaaaaaaaa', '{}', 2, '{"AP": 39.3}', '2026-01-01 09:01:50.000000');
INSERT INTO artifacts (trial_key, attempt_id, evaluation_key, kind, path, sha256, step, time) VALUES
    ('aaaaaaaaaaaa', 2, NULL, 'checkpoint', 'artifacts/aaaaaaaaaaaa/40.pt', '0000', 40, '2026-01-01 09:01:40.000000');
