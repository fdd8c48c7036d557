BEGIN TRANSACTION;
CREATE TABLE admissions (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR(64) NOT NULL, 
	created_at INTEGER NOT NULL, 
	finished_at INTEGER, 
	state VARCHAR(20) NOT NULL, 
	model VARCHAR(64) NOT NULL, 
	files JSON NOT NULL, 
	owner VARCHAR(64), 
	heartbeat INTEGER NOT NULL, 
	version VARCHAR(16), 
	error TEXT, 
	UNIQUE (id)
);
INSERT INTO "admissions" VALUES(1,'import-b52987cf3c2c1c28a319f2f2',1795520291,1795520291,'succeeded','wine','{"model.onnx": "986579813ea28169394b0d4224bd72324637ddfe9ae057bfba64a5fb5a70c2e2"}','judge',0,'2',NULL);
CREATE TABLE files (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR(64) NOT NULL, 
	created_at INTEGER NOT NULL, 
	filename VARCHAR(255) NOT NULL, 
	purpose VARCHAR(32) NOT NULL, 
	bytes INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	UNIQUE (id)
);
INSERT INTO "files" VALUES(1,'file-789a7e9b600061c1f550f1a6',1795520291,'data.csv','fine-tune',17,'f6850b406b18406fe8e28b92ec7d44aee8d2360845c52e0678aee9278bfba356');
CREATE TABLE history (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	model VARCHAR(64) NOT NULL, 
	at INTEGER NOT NULL, 
	what VARCHAR(16) NOT NULL, 
	who VARCHAR(128) NOT NULL, 
	why TEXT NOT NULL, 
	"before" INTEGER, 
	"after" INTEGER NOT NULL, 
	FOREIGN KEY(model) REFERENCES models (name)
);
INSERT INTO "history" VALUES(1,'digits',1795520291,'promote','anna','better',NULL,1);
INSERT INTO "history" VALUES(2,'digits',1795520291,'promote','anna','better',1,2);
INSERT INTO "history" VALUES(3,'digits',1795520291,'promote','ftjob-1122b5ec8312cf500bf3ac8c','better',2,3);
INSERT INTO "history" VALUES(4,'digits',1795520291,'rollback','bela','rollback',3,2);
CREATE TABLE idempotency (
	scope VARCHAR(16) NOT NULL, 
	"key" VARCHAR(255) NOT NULL, 
	fingerprint VARCHAR(64) NOT NULL, 
	resource VARCHAR(64) NOT NULL, 
	PRIMARY KEY (scope, "key")
);
INSERT INTO "idempotency" VALUES('file','upload','c4fc3ef3b608da9c41a7ff0109b9a9567ed739e8c789c8373c0439f9a2e1d54d','file-789a7e9b600061c1f550f1a6');
INSERT INTO "idempotency" VALUES('job','job','c00c4e1747397560f5c1d420dd8b8060ceba48ddc8bfe231d5c925fe7ae994b4','ftjob-1122b5ec8312cf500bf3ac8c');
CREATE TABLE job_checkpoints (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR(64) NOT NULL, 
	job VARCHAR(64) NOT NULL, 
	created_at INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	metrics JSON NOT NULL, 
	digest VARCHAR(64), 
	UNIQUE (id), 
	FOREIGN KEY(job) REFERENCES jobs (id)
);
INSERT INTO "job_checkpoints" VALUES(1,'ftckpt-7f4c15fe524d0783f3170204','ftjob-1122b5ec8312cf500bf3ac8c',1795520291,1,'{"loss": 0.5}',NULL);
CREATE TABLE job_events (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR(64) NOT NULL, 
	job VARCHAR(64) NOT NULL, 
	created_at INTEGER NOT NULL, 
	level VARCHAR(8) NOT NULL, 
	type VARCHAR(8) NOT NULL, 
	message TEXT NOT NULL, 
	data JSON, 
	UNIQUE (id), 
	FOREIGN KEY(job) REFERENCES jobs (id)
);
INSERT INTO "job_events" VALUES(1,'ftevent-8a576387a99ff4894d351f80','ftjob-1122b5ec8312cf500bf3ac8c',1795520291,'info','message','The job was created; it trains digits:2 further.',NULL);
INSERT INTO "job_events" VALUES(2,'ftevent-81b927a3a947dbfbb2126439','ftjob-1122b5ec8312cf500bf3ac8c',1795520291,'info','message','The data are good.',NULL);
INSERT INTO "job_events" VALUES(3,'ftevent-de72939849a4d682d8d34835','ftjob-1122b5ec8312cf500bf3ac8c',1795520291,'info','message','Training begins.',NULL);
INSERT INTO "job_events" VALUES(4,'ftevent-2f9fe38b98f4cbe8c8cb5abf','ftjob-1122b5ec8312cf500bf3ac8c',1795520291,'info','metrics','Step 1.','{"loss": 0.5}');
INSERT INTO "job_events" VALUES(5,'ftevent-d0ae977250a023eadc703649','ftjob-1122b5ec8312cf500bf3ac8c',1795520291,'info','message','Done.',NULL);
INSERT INTO "job_events" VALUES(6,'ftevent-53d12e8b5e581f925f089bb1','ftjob-120548c98101cd7139e1a613',1795520291,'info','message','The job was created; it trains digits:2 further.',NULL);
INSERT INTO "job_events" VALUES(7,'ftevent-3c3e6601d41c1cd4a3b007e1','ftjob-120548c98101cd7139e1a613',1795520291,'info','message','The job was cancelled.',NULL);
INSERT INTO "job_events" VALUES(8,'ftevent-8b012eb8f4e37fff81c91237','ftjob-357ec5bf06c0ee67ea069149',1795520291,'info','message','The job was created; it trains digits:2 further.',NULL);
INSERT INTO "job_events" VALUES(9,'ftevent-f48876ab4ce1e3ea4a922066','ftjob-357ec5bf06c0ee67ea069149',1795520291,'info','message','The job is asked to pause.',NULL);
INSERT INTO "job_events" VALUES(10,'ftevent-9a59174d3e28109845d68920','ftjob-5af8927ad2b95602b6e3ceb1',1795520291,'info','message','The job was created; it trains digits:2 further.',NULL);
CREATE TABLE jobs (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR(64) NOT NULL, 
	created_at INTEGER NOT NULL, 
	finished_at INTEGER, 
	state VARCHAR(20) NOT NULL, 
	paused BOOLEAN NOT NULL, 
	cancel BOOLEAN NOT NULL, 
	request JSON NOT NULL, 
	model VARCHAR(64) NOT NULL, 
	parent VARCHAR(128) NOT NULL, 
	training_file VARCHAR(64) NOT NULL, 
	validation_file VARCHAR(64), 
	attempt INTEGER NOT NULL, 
	owner VARCHAR(64), 
	heartbeat INTEGER NOT NULL, 
	losses INTEGER NOT NULL, 
	step INTEGER, 
	steps INTEGER, 
	estimated_finish INTEGER, 
	fine_tuned_model VARCHAR(160), 
	error JSON, 
	result JSON, 
	spectral JSON, 
	UNIQUE (id)
);
INSERT INTO "jobs" VALUES(1,'ftjob-1122b5ec8312cf500bf3ac8c',1795520291,1795520291,'succeeded',0,0,'{"model": "digits", "training_file": "file-789a7e9b600061c1f550f1a6", "validation_file": null, "suffix": null, "metadata": {"team": "red"}, "promote": "never", "dry_run": false, "hyperparameters": {"gradient_mode": "full", "n_epochs": 20, "batch_size": 64, "learning_rate": 0.003, "learning_rate_multiplier": 1.0, "schedule": "constant", "optimizer": "adam", "weight_decay": 0.0, "loss": "cross_entropy", "temperature": 10.0, "margin": 0.5, "power_iterations": 1, "checkpoint_every": 100, "seed": 0, "privacy": null}}','digits','digits:2','file-789a7e9b600061c1f550f1a6',NULL,1,NULL,1,0,1,2,NULL,'digits:3',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(2,'ftjob-120548c98101cd7139e1a613',1795520291,1795520291,'cancelled',0,1,'{"model": "digits", "training_file": "file-789a7e9b600061c1f550f1a6", "validation_file": null, "suffix": null, "metadata": null, "promote": "never", "dry_run": false, "hyperparameters": {"gradient_mode": "full", "n_epochs": 20, "batch_size": 64, "learning_rate": 0.003, "learning_rate_multiplier": 1.0, "schedule": "constant", "optimizer": "adam", "weight_decay": 0.0, "loss": "cross_entropy", "temperature": 10.0, "margin": 0.5, "power_iterations": 1, "checkpoint_every": 100, "seed": 0, "privacy": null}}','digits','digits:2','file-789a7e9b600061c1f550f1a6',NULL,0,NULL,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(3,'ftjob-357ec5bf06c0ee67ea069149',1795520291,NULL,'validating_files',1,0,'{"model": "digits", "training_file": "file-789a7e9b600061c1f550f1a6", "validation_file": null, "suffix": null, "metadata": null, "promote": "never", "dry_run": false, "hyperparameters": {"gradient_mode": "full", "n_epochs": 20, "batch_size": 64, "learning_rate": 0.003, "learning_rate_multiplier": 1.0, "schedule": "constant", "optimizer": "adam", "weight_decay": 0.0, "loss": "cross_entropy", "temperature": 10.0, "margin": 0.5, "power_iterations": 1, "checkpoint_every": 100, "seed": 0, "privacy": null}}','digits','digits:2','file-789a7e9b600061c1f550f1a6',NULL,0,NULL,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(4,'ftjob-5af8927ad2b95602b6e3ceb1',1795520291,NULL,'validating_files',0,0,'{"model": "digits", "training_file": "file-789a7e9b600061c1f550f1a6", "validation_file": null, "suffix": null, "metadata": null, "promote": "never", "dry_run": false, "hyperparameters": {"gradient_mode": "full", "n_epochs": 20, "batch_size": 64, "learning_rate": 0.003, "learning_rate_multiplier": 1.0, "schedule": "constant", "optimizer": "adam", "weight_decay": 0.0, "loss": "cross_entropy", "temperature": 10.0, "margin": 0.5, "power_iterations": 1, "checkpoint_every": 100, "seed": 0, "privacy": null}}','digits','digits:2','file-789a7e9b600061c1f550f1a6',NULL,0,NULL,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE models (
	name VARCHAR(64) NOT NULL, 
	live INTEGER, 
	next_version INTEGER NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "models" VALUES('digits',2,4);
INSERT INTO "models" VALUES('wine',NULL,3);
CREATE TABLE schema_version (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "schema_version" VALUES(1);
CREATE TABLE version_files (
	model VARCHAR(64) NOT NULL, 
	version INTEGER NOT NULL, 
	name VARCHAR(255) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	PRIMARY KEY (model, version, name), 
	FOREIGN KEY(model, version) REFERENCES versions (model, version) ON DELETE CASCADE
);
INSERT INTO "version_files" VALUES('digits',1,'model.onnx','4302a40a2e740afc687b2d835bdebf7e019f89944a09ee164ea355e5246e8a9c');
INSERT INTO "version_files" VALUES('digits',1,'checkpoint.safetensors','9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c');
INSERT INTO "version_files" VALUES('digits',1,'architecture.json','44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a');
INSERT INTO "version_files" VALUES('digits',2,'model.onnx','8f91168177f4edda620b83f718979a3ff5e6788fa1dcd36f9415a9ae8f132381');
INSERT INTO "version_files" VALUES('digits',2,'checkpoint.safetensors','9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c');
INSERT INTO "version_files" VALUES('digits',2,'architecture.json','44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a');
INSERT INTO "version_files" VALUES('wine',1,'model.onnx','b6cca2dd34181de0c1d9f6feea6cf93db3be5ea200a7a68a433c4b3b4bf1d004');
INSERT INTO "version_files" VALUES('wine',1,'checkpoint.safetensors','9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c');
INSERT INTO "version_files" VALUES('wine',1,'architecture.json','44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a');
INSERT INTO "version_files" VALUES('digits',3,'model.onnx','5674dcc7eb9debd787e7fd400e511cb84407fb19fb258c1a1b58de39b430aa36');
INSERT INTO "version_files" VALUES('digits',3,'checkpoint.safetensors','9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c');
INSERT INTO "version_files" VALUES('digits',3,'architecture.json','44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a');
INSERT INTO "version_files" VALUES('wine',2,'model.onnx','af03d237b81d867a297f6f232dd065331b44ac598b90352645ab0d973aaabe74');
INSERT INTO "version_files" VALUES('wine',2,'checkpoint.safetensors','9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c');
INSERT INTO "version_files" VALUES('wine',2,'architecture.json','44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a');
CREATE TABLE versions (
	model VARCHAR(64) NOT NULL, 
	version INTEGER NOT NULL, 
	created INTEGER NOT NULL, 
	parent VARCHAR(128), 
	job VARCHAR(64), 
	manifest TEXT NOT NULL, 
	manifest_digest VARCHAR(64) NOT NULL, 
	PRIMARY KEY (model, version), 
	FOREIGN KEY(model) REFERENCES models (name), 
	UNIQUE (job)
);
INSERT INTO "versions" VALUES('digits',1,1795520291,NULL,NULL,'{"format":1,"signature":{"inputs":[{"name":"input","datatype":"FP32","shape":[-1,2]}],"outputs":[{"name":"logits","datatype":"FP32","shape":[-1,2]}],"rows_independent":false,"labels":[]},"input":{"minimum":null,"maximum":null,"units":"as given","normalisation":"none"},"layers":[],"lipschitz":{"bound":1.0,"norm":"l2","rigorous":true,"method":"product","reason":null,"sensitivity":[],"pairs":false},"gradient_mode":"full","training":{"data_digest":"0000000000000000000000000000000000000000000000000000000000000000","hyperparameters":{"n_epochs":3},"metrics":{"accuracy":0.91},"seed":1,"privacy":null},"verification":{},"origin":"specnorm","tools":{},"files":{"model.onnx":"4302a40a2e740afc687b2d835bdebf7e019f89944a09ee164ea355e5246e8a9c","checkpoint.safetensors":"9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c","architecture.json":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}}','ec6acc11d8565b883766ad799d8efee5e62695f02fa0a3cd144e52225ecdd09a');
INSERT INTO "versions" VALUES('digits',2,1795520291,'digits:1',NULL,'{"format":1,"signature":{"inputs":[{"name":"input","datatype":"FP32","shape":[-1,2]}],"outputs":[{"name":"logits","datatype":"FP32","shape":[-1,2]}],"rows_independent":false,"labels":[]},"input":{"minimum":null,"maximum":null,"units":"as given","normalisation":"none"},"layers":[],"lipschitz":{"bound":1.0,"norm":"l2","rigorous":true,"method":"product","reason":null,"sensitivity":[],"pairs":false},"gradient_mode":"full","training":{"data_digest":"0000000000000000000000000000000000000000000000000000000000000000","hyperparameters":{"n_epochs":3},"metrics":{"accuracy":0.92},"seed":2,"privacy":null},"verification":{},"origin":"specnorm","tools":{},"files":{"model.onnx":"8f91168177f4edda620b83f718979a3ff5e6788fa1dcd36f9415a9ae8f132381","checkpoint.safetensors":"9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c","architecture.json":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}}','b4cae54a4c38292b3520b40e06d4ecfe5a8bbd932d219e9b69ac61c32a5ac08e');
INSERT INTO "versions" VALUES('wine',1,1795520291,NULL,NULL,'{"format":1,"signature":{"inputs":[{"name":"input","datatype":"FP32","shape":[-1,2]}],"outputs":[{"name":"logits","datatype":"FP32","shape":[-1,2]}],"rows_independent":false,"labels":[]},"input":{"minimum":null,"maximum":null,"units":"as given","normalisation":"none"},"layers":[],"lipschitz":{"bound":1.0,"norm":"l2","rigorous":true,"method":"product","reason":null,"sensitivity":[],"pairs":false},"gradient_mode":"full","training":{"data_digest":"0000000000000000000000000000000000000000000000000000000000000000","hyperparameters":{"n_epochs":3},"metrics":{"accuracy":0.97},"seed":7,"privacy":null},"verification":{},"origin":"specnorm","tools":{},"files":{"model.onnx":"b6cca2dd34181de0c1d9f6feea6cf93db3be5ea200a7a68a433c4b3b4bf1d004","checkpoint.safetensors":"9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c","architecture.json":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}}','044adbe4625b03017f1bf5b32fbda6253c4d45560ee36daeeecd45600d8d0898');
INSERT INTO "versions" VALUES('digits',3,1795520291,'digits:2','ftjob-1122b5ec8312cf500bf3ac8c','{"format":1,"signature":{"inputs":[{"name":"input","datatype":"FP32","shape":[-1,2]}],"outputs":[{"name":"logits","datatype":"FP32","shape":[-1,2]}],"rows_independent":false,"labels":[]},"input":{"minimum":null,"maximum":null,"units":"as given","normalisation":"none"},"layers":[],"lipschitz":{"bound":1.0,"norm":"l2","rigorous":true,"method":"product","reason":null,"sensitivity":[],"pairs":false},"gradient_mode":"full","training":{"data_digest":"0000000000000000000000000000000000000000000000000000000000000000","hyperparameters":{"n_epochs":3},"metrics":{"accuracy":0.93},"seed":3,"privacy":null},"verification":{},"origin":"specnorm","tools":{},"files":{"model.onnx":"5674dcc7eb9debd787e7fd400e511cb84407fb19fb258c1a1b58de39b430aa36","checkpoint.safetensors":"9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c","architecture.json":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}}','245846638545256044ff5d6454f28feca125f428414b5dcbc1ac39dee7c5860c');
INSERT INTO "versions" VALUES('wine',2,1795520291,NULL,NULL,'{"format":1,"signature":{"inputs":[{"name":"input","datatype":"FP32","shape":[-1,2]}],"outputs":[{"name":"logits","datatype":"FP32","shape":[-1,2]}],"rows_independent":false,"labels":[]},"input":{"minimum":null,"maximum":null,"units":"as given","normalisation":"none"},"layers":[],"lipschitz":{"bound":1.0,"norm":"l2","rigorous":true,"method":"product","reason":null,"sensitivity":[],"pairs":false},"gradient_mode":"full","training":{"data_digest":"0000000000000000000000000000000000000000000000000000000000000000","hyperparameters":{"n_epochs":3},"metrics":{"accuracy":0.98},"seed":8,"privacy":null},"verification":{},"origin":"specnorm","tools":{},"files":{"model.onnx":"af03d237b81d867a297f6f232dd065331b44ac598b90352645ab0d973aaabe74","checkpoint.safetensors":"9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c","architecture.json":"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}}','c9cb2bd37c30f2190ee0a21f06fb2368cea9058fcea810f327cb62d5adae1c90');
CREATE INDEX jobs_by_state ON jobs (state, number);
CREATE INDEX events_by_job ON job_events (job, number);
CREATE INDEX checkpoints_by_job ON job_checkpoints (job, number);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('history',4);
INSERT INTO "sqlite_sequence" VALUES('files',2);
INSERT INTO "sqlite_sequence" VALUES('jobs',4);
INSERT INTO "sqlite_sequence" VALUES('job_events',10);
INSERT INTO "sqlite_sequence" VALUES('job_checkpoints',1);
INSERT INTO "sqlite_sequence" VALUES('admissions',1);
COMMIT;
