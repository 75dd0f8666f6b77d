/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgraded-worker: one process for one upgrade. Spawned by the daemon with a
 * SEQPACKET socket as fd 3; reads its order (WorkerStart), carries it out,
 * sends WorkerDone, exits. Not for people, hence no options.
 *
 * Owns nothing that matters: custody and journal are the daemon's. When this
 * process dies the daemon starts another one that finishes or undoes.
 */
#include "device_state.h"
#include "executable.h"
#include "fault_point.h"
#include "link.h"
#include "upgrade.h"
#include "version.h"
#include "wire.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

#define DAEMON_FD 3

static void fill_report(struct upgrade *u, Upgraded__V1__Outcome outcome, const struct error *err,
			Upgraded__V1__Vm *before, Upgraded__V1__PhaseTime **phases,
			Upgraded__V1__Report *report)
{
	upgraded__v1__report__init(report);
	report->upgrade_id = u->start->upgrade_id;
	report->vm = u->start->vm->name;
	report->outcome = outcome;
	report->tier = u->tier;
	report->source_version = before->version;
	report->source_binary = before->binary;
	report->source = before->process;
	report->target_version = u->target_version ?: (char *)"";
	report->target_binary = u->start->target_binary;
	report->target = u->target.pid ? &u->target : NULL;
	for (size_t i = 0; i < u->timeline.n; i++)
		phases[i] = &u->timeline.phase[i];
	report->phases = phases;
	report->n_phases = u->timeline.n;
	if (u->stopped_at_us && u->running_at_us > u->stopped_at_us)
		report->blackout_us = u->running_at_us - u->stopped_at_us;
	report->state_bytes = u->state_bytes;
	report->fds = u->fds;
	report->handover = u->handover;
	report->source_sha256 = u->source_sha256;
	report->target_sha256 = u->target_sha256;
	report->findings = u->findings.v;
	report->n_findings = u->findings.n;
	report->started_at_us = u->timeline.begin_at_us;
	report->total_us = timeline_end(&u->timeline);
	if (outcome == UPGRADED__V1__OUTCOME__OUTCOME_COMMITTED)
		return;
	report->error = err->text ?: (char *)"out of memory";
	report->failed_phase = timeline_phase(&u->timeline);
	/* The phase that failed, not the rollback that followed. */
	if (report->failed_phase == UPGRADED__V1__PHASE__PHASE_ROLLBACK && u->timeline.n > 1)
		report->failed_phase = u->timeline.phase[u->timeline.n - 2].phase;
}

/* Carries out the order. *err says why it is not COMMITTED, or what a check came to grief at. */
static Upgraded__V1__Outcome carry_out(struct upgrade *u, struct error *err)
{
	switch (u->start->mode) {
	case UPGRADED__V1__WORKER_MODE__WORKER_CHECK:
		(void)upgrade_check(u, err);
		break;
	case UPGRADED__V1__WORKER_MODE__WORKER_UPGRADE:
		return upgrade_run(u, err);
	case UPGRADED__V1__WORKER_MODE__WORKER_ROLLBACK:
		return upgrade_undo(u, err);
	case UPGRADED__V1__WORKER_MODE__WORKER_FORWARD:
		return upgrade_forward(u, err);
	case UPGRADED__V1__WORKER_MODE__WORKER_REBUILD:
		return upgrade_rebuild(u, err);
	default:
		error_set(err, -EOPNOTSUPP, "this worker is older than the daemon's order");
		break;
	}
	return UPGRADED__V1__OUTCOME__OUTCOME_REFUSED;
}

/* What of @report a check says, and what only a check does. */
static void fill_check(struct upgrade *u, Upgraded__V1__Vm *vm, Upgraded__V1__Report *report,
		       Upgraded__V1__CheckReport *check)
{
	upgraded__v1__check_report__init(check);
	check->vm = vm;
	check->target_binary = u->start->target_binary;
	check->target_version = report->target_version;
	check->tier = u->tier;
	check->findings = report->findings;
	check->n_findings = report->n_findings;
	report->n_findings = 0;
	check->argv = u->driver->planned_argv(u);
	while (check->argv && check->argv[check->n_argv])
		check->n_argv++;
}

/* Carries out the order and tells what came of it. Returns what the process exits with. */
static int work(struct upgrade *u)
{
	Upgraded__V1__WorkerDone done = UPGRADED__V1__WORKER_DONE__INIT;
	Upgraded__V1__PhaseTime *phases[TIMELINE_MAX];
	Upgraded__V1__FileDigest *read[ARRAY_SIZE(u->read)];
	Upgraded__V1__Vm before = *u->start->vm, after = *u->start->vm;
	bool checks = u->start->mode == UPGRADED__V1__WORKER_MODE__WORKER_CHECK, committed;
	Upgraded__V1__CheckReport check;
	Upgraded__V1__Report report;
	Upgraded__V1__Outcome outcome;
	_cleanup_error_ struct error err = ERROR_INIT;

	outcome = carry_out(u, &err);
	if (outcome == UPGRADED__V1__OUTCOME__OUTCOME_UNSPECIFIED)
		return EXIT_FAILURE;

	committed = outcome == UPGRADED__V1__OUTCOME__OUTCOME_COMMITTED;
	u->driver->describe(u, false, &before);
	u->driver->describe(u, committed, &after);
	after.generation += committed;
	after.tier = u->tier;
	if (!checks) {
		upgrade_identify(u);
		after.binary_sha256 = committed ? u->target_sha256 : u->source_sha256;
	}
	for (size_t i = 0; i < u->n_read; i++)
		read[i] = &u->read[i];
	done.read = read;
	done.n_read = u->n_read;
	fill_report(u, outcome, &err, &before, phases, &report);
	done.vm = &after;
	done.report = &report;
	if (checks) {
		fill_check(u, &after, &report, &check);
		if (!err.code)
			report.error = (char *)"";
		done.check = &check;
	}
	if (link_done(&u->wait, &done) < 0)
		return EXIT_FAILURE;
	fault_point(FAULT_DONE);
	return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
	_cleanup_envelope_ Envelope *env = NULL;
	_cleanup_error_ struct error err = ERROR_INIT;
	Upgraded__V1__WorkerStart *start;
	struct upgrade u = {
		.wait = WAITER_INIT,
		.source_pidfd = -EBADF,
		.target_pidfd = -EBADF,
		.state = -EBADF,
		.source_exe = -EBADF,
		.target_exe = -EBADF,
		.target = UPGRADED__V1__PROCESS__INIT,
	};
	int r;

	if (argc > 1 || fcntl(DAEMON_FD, F_GETFD) < 0) {
		fprintf(stderr,
			"upgraded-worker %s is started by upgraded, not by hand; "
			"see upgradectl(1)\n",
			UPGRADED_VERSION);
		return 2;
	}
	(void)argv;
	(void)fcntl(DAEMON_FD, F_SETFD, FD_CLOEXEC);
	signal(SIGPIPE, SIG_IGN);

	r = link_receive_start(DAEMON_FD, &env, &start, &fds, &err);
	if (r >= 0)
		r = inherited_receive(DAEMON_FD, start->custody, &u.inherited, &err);
	if (r >= 0 && !inherited_fd(&u.inherited, DEVICE_STATE, &u.state))
		u.stopped_at_us = device_state_written_us(u.state);
	if (r < 0) {
		fprintf(stderr, "upgraded-worker: %s\n", err.text ?: "out of memory");
		return EXIT_FAILURE;
	}
	fault_point(FAULT_ORDERED);
	u.start = start;
	u.driver = strcmp(start->vm->driver, driver_native.name) ? &driver_qemu : &driver_native;
	u.source_pidfd = scm_fds_take(&fds, 0);
	if (fds.n > 1)
		u.target_pidfd = scm_fds_take(&fds, 1);
	if (start->target)
		u.target = *start->target;
	if (start->plan)
		u.tier = start->plan->tier;
	u.source_exe = executable_open(start->vm->process->pid, u.source_pidfd);
	if (u.target_pidfd >= 0)
		u.target_exe = executable_open(u.target.pid, u.target_pidfd);
	u.wait.daemon = DAEMON_FD;
	u.wait.source = u.source_pidfd;

	r = work(&u);

	u.driver->free(&u);
	findings_clear(&u.findings);
	free(u.target_version);
	free(u.unit);
	closep(&u.source_pidfd);
	closep(&u.target_pidfd);
	closep(&u.source_exe);
	closep(&u.target_exe);
	closep(&u.state);
	inherited_clear(&u.inherited);
	return r;
}
