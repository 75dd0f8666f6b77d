/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What of the source's state stands in the way of an upgrade, told before
 * anything is started. QEMU itself refuses most of it too, but only once the
 * migration runs, one reason at a time, and leaves the target hanging. Called
 * after source_read(); each finding says what it means and what to do.
 *
 * QEMU lists the blockers of its current migration mode only, so the mode is
 * set to cpr-transfer for the moment of asking. If the worker dies in between,
 * the mode stays: an ordinary migration would then ask for a cpr channel, and
 * the next check or rollback sets it back.
 */
#include "source.h"

#include "qmp_query.h"

#include <string.h>

#define BLOCKER UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER

static const char ram_remedy[] =
	"start it with -object memory-backend-memfd,id=ram0,size=SIZE,share=on -machine "
	"memory-backend=ram0,aux-ram-share=on (upgradectl run does it; libvirt: <memoryBacking>"
	"<source type='memfd'/><access mode='shared'/></memoryBacking>)";

static int check_status(struct source *s, struct findings *f)
{
	static const struct {
		const char *status, *meaning, *remedy;
	} known[] = {
		{ "prelaunch", "the guest was not started yet", "continue it first" },
		{ "inmigrate", "the VM still waits for an incoming migration",
		  "wait until it has arrived" },
		{ "postmigrate", "the guest was migrated away from this VM",
		  "stop it here, or continue it if the other side is gone" },
		{ "finish-migrate", "the guest is being migrated away", "wait for the migration" },
		{ "save-vm", "a snapshot is being written", "wait until it is written" },
		{ "restore-vm", "a snapshot is being loaded", "wait until it is loaded" },
		{ "suspended", "the guest sleeps (suspend to RAM)", "wake it first" },
		{ "internal-error", "KVM could not go on with the guest", "reset the guest" },
		{ "io-error", "the guest stopped at an error of its disk",
		  "repair the storage and continue the guest" },
		{ "guest-panicked", "the guest crashed", "reset the guest" },
		{ "shutdown", "the guest is switched off", "start it again with the new binary" },
		{ "watchdog", "the guest's watchdog stopped it", "continue or reset the guest" },
	};

	if (!strcmp(s->status, "running") || !strcmp(s->status, "paused"))
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (!strcmp(s->status, known[i].status))
			return findings_add(f, BLOCKER, "source.status", s->status, known[i].remedy,
					    "%s", known[i].meaning);
	return findings_add(f, BLOCKER, "source.status", s->status,
			    "bring the guest to 'running' or 'paused'",
			    "a guest in the state '%s' cannot be moved", s->status);
}

static int check_memdevs(struct qmp *qmp, struct findings *f, struct error *err)
{
	struct json_object *v = NULL;
	int r;

	r = qmp_execute(qmp, "query-memdev", NULL, &v, err);
	for (size_t i = 0; r >= 0 && i < json_array_size(json_get_array(v, NULL)); i++) {
		struct json_object *dev = json_object_array_get_idx(v, i);
		const char *id = json_get_string(dev, "id") ?: "unnamed";

		if (!json_get_bool(dev, "share"))
			r = findings_add(f, BLOCKER, "source.ram-private", id, ram_remedy,
					 "the guest's memory '%s' is private to its process, "
					 "another one cannot take it over",
					 id);
	}
	json_object_put(v);
	return r;
}

static int check_aux_ram(struct qmp *qmp, struct findings *f, struct error *err)
{
	_cleanup_error_ struct error why = ERROR_INIT;
	struct json_object *v = NULL;
	bool shared;
	int r;

	r = qmp_qom_get(qmp, "/machine", "aux-ram-share", &v, &why);
	/* A machine without the property is too old: said once, elsewhere. */
	if (r == -EREMOTEIO)
		return 0;
	if (r < 0) {
		error_move(err, &why);
		return r;
	}
	shared = json_object_get_boolean(v);
	json_object_put(v);
	if (shared)
		return 0;
	return findings_add(
		f, BLOCKER, "source.aux-ram-private", "aux-ram-share",
		"start it with -machine aux-ram-share=on (upgradectl run does it; libvirt: "
		"<qemu:arg value='-machine'/><qemu:arg value='aux-ram-share=on'/>)",
		"the memory of the guest's ROMs and video is private to its process, "
		"another one cannot take it over");
}

static int check_migration_status(struct json_object *v, struct findings *f)
{
	static const char *const at_rest[] = { "none", "completed", "failed", "cancelled" };
	const char *status = json_get_string(v, "status");

	for (size_t i = 0; status && i < ARRAY_SIZE(at_rest); i++)
		if (!strcmp(status, at_rest[i]))
			return 0;
	if (!status)
		return 0;
	return findings_add(f, BLOCKER, "source.migration", status,
			    "wait until it has ended, or end it with migrate_cancel",
			    "a migration of the guest is under way (%s)", status);
}

/* The RAM reasons repeat what query-memdev showed already, for one block of it. */
static bool said_already(const char *reason, const struct findings *f)
{
	if (!strstr(reason, "share=on") && !strstr(reason, "not compatible with CPR"))
		return false;
	for (size_t i = 0; i < f->n; i++)
		if (!strcmp(f->v[i]->code, "source.ram-private") ||
		    !strcmp(f->v[i]->code, "source.aux-ram-private"))
			return true;
	return false;
}

static int add_blocked_reasons(struct json_object *v, struct findings *f)
{
	struct json_object *reasons = json_get_array(v, "blocked-reasons");
	int r = 0;

	for (size_t i = 0; i < json_array_size(reasons) && r >= 0; i++) {
		const char *reason =
			json_object_get_string(json_object_array_get_idx(reasons, i)) ?: "?";

		if (!said_already(reason, f))
			r = findings_add(f, BLOCKER, "source.blocked", "migration",
					 "remove the device or the option that it names, or change "
					 "it so that the guest can be migrated",
					 "QEMU refuses to hand the guest on: %s", reason);
	}
	return r;
}


static int check_migration(struct qmp *qmp, bool cpr, struct findings *f, struct error *err)
{
	_cleanup_error_ struct error ignored = ERROR_INIT;
	struct json_object *v = NULL;
	size_t before = f->n;
	int r, reset;

	r = qmp_execute(qmp, "query-migrate", NULL, &v, err);
	if (r >= 0)
		r = check_migration_status(v, f);
	/* While one is under way its mode is not ours to change. */
	if (r < 0 || f->n > before || !cpr) {
		if (r >= 0 && f->n == before)
			r = add_blocked_reasons(v, f);
		json_object_put(v);
		return r;
	}
	json_object_put(v);
	v = NULL;

	r = qmp_set_migration_mode(qmp, "cpr-transfer", err);
	if (r < 0)
		return r;
	r = qmp_execute(qmp, "query-migrate", NULL, &v, err);
	reset = qmp_set_migration_mode(qmp, "normal", r < 0 ? &ignored : err);
	if (r >= 0)
		r = add_blocked_reasons(v, f);
	json_object_put(v);
	return r < 0 ? r : reset;
}

/*
 * The version tells it well enough. The schema (query-qmp-schema) would tell it
 * by name, but a QEMU that makes that text holds up its guest meanwhile: some
 * milliseconds, and half a second on an emulated host.
 */
static int check_cpr(struct source *s, bool *ret_cpr, struct findings *f)
{
	*ret_cpr = strtol(s->version, NULL, 10) >= 10;
	if (*ret_cpr)
		return 0;
	return findings_add(f, BLOCKER, "source.too-old", s->version,
			    "restart the guest once with QEMU 10.0 or later",
			    "QEMU %s cannot hand its guest to another process on the same host "
			    "(cpr-transfer came with 10.0)",
			    s->version);
}

static int check_jobs(struct qmp *qmp, struct findings *f, struct error *err)
{
	struct json_object *v = NULL;
	int r;

	r = qmp_execute(qmp, "query-jobs", NULL, &v, err);
	for (size_t i = 0; r >= 0 && i < json_array_size(json_get_array(v, NULL)); i++) {
		struct json_object *job = json_object_array_get_idx(v, i);
		const char *id = json_get_string(job, "id") ?: "unnamed";

		r = findings_add(f, BLOCKER, "source.job", id,
				 "wait for it, or end it with job-cancel or job-dismiss",
				 "the job '%s' (%s, %s) is under way and would be lost", id,
				 json_get_string(job, "type") ?: "unknown",
				 json_get_string(job, "status") ?: "unknown");
	}
	json_object_put(v);
	return r;
}

/* Block jobs are jobs too, but for the ones of old commands without a job id. */
static int check_block_jobs(struct qmp *qmp, struct findings *f, struct error *err)
{
	struct json_object *v = NULL;
	int r;

	r = qmp_execute(qmp, "query-block-jobs", NULL, &v, err);
	for (size_t i = 0; r >= 0 && i < json_array_size(json_get_array(v, NULL)); i++) {
		struct json_object *job = json_object_array_get_idx(v, i);
		const char *device = json_get_string(job, "device") ?: "unnamed";
		bool known = false;

		for (size_t j = 0; j < f->n; j++)
			known |= !strcmp(f->v[j]->code, "source.job") &&
				 !strcmp(f->v[j]->subject, device);
		if (!known)
			r = findings_add(f, BLOCKER, "source.block-job", device,
					 "wait for it, or end it with block-job-cancel",
					 "a block job (%s) of '%s' is under way and would be lost",
					 json_get_string(job, "type") ?: "unknown", device);
	}
	json_object_put(v);
	return r;
}

int source_check(struct source *s, struct qmp *qmp, struct findings *f, struct error *err)
{
	bool cpr = false;
	int r;

	r = check_status(s, f);
	if (r >= 0)
		r = check_cpr(s, &cpr, f);
	if (r >= 0)
		r = check_memdevs(qmp, f, err);
	if (r >= 0)
		r = check_aux_ram(qmp, f, err);
	if (r >= 0)
		r = check_migration(qmp, cpr, f, err);
	if (r >= 0)
		r = check_jobs(qmp, f, err);
	if (r >= 0)
		r = check_block_jobs(qmp, f, err);
	if (r >= 0)
		r = source_check_drift(s, qmp, f, err);
	return r < 0 ? error_errno(err, r, "cannot check the source") : 0;
}
