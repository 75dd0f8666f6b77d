/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds daemon/recover.c and upgrade_recovery.c to their word: an upgrade that was
 * running when the daemon ended is gone on with, whatever this machine is short of
 * just then. Journal, registry and fd store are the real ones; workers, if any, do
 * nothing, and both VMMs are processes that have ended.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fault_point.h"
#include "few_fds.h"
#include "history.h"
#include "journal.h"
#include "manager/libvirt.h"
#include "manager/systemd.h"
#include "native.h"
#include "oneshot.h"
#include "recover.h"
#include "upgrade_state.h"
#include "work_dir.h"
#include "worker/deadlines.h"
#include "worker/device_state.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define ID	    7
#define BLACKOUT_US 300000
#define KIND(x) UPGRADED__V1__JOURNAL_RECORD__KIND__##x

struct fixture {
	char dir[64];
	struct context ctx;
};

static void on_gone(struct vm *vm, void *userdata)
{
}

static void start_daemon(struct fixture *f)
{
	char vms[80];
	uint64_t last;

	f->ctx = (struct context){ .next_id = 1 };
	f->ctx.options.runtime_dir = f->dir;
	f->ctx.options.worker = "/nonexistent";
	snprintf(vms, sizeof(vms), "%s/vms", f->dir);
	assert_true(sd_event_new(&f->ctx.event) >= 0);
	metrics_init(&f->ctx.metrics);
	assert_int_equal(fd_store_new(f->ctx.event, &f->ctx.fd_store), 0);
	assert_int_equal(journal_open(f->dir, &f->ctx.journal, NULL), 0);
	assert_int_equal(history_open(f->dir, 1 << 20, &f->ctx.history, &last, NULL), 0);
	assert_int_equal(registry_open(f->ctx.event, vms, on_gone, NULL, &f->ctx.registry, NULL),
			 0);
	assert_int_equal(systemd_new(&f->ctx, &f->ctx.systemd, NULL), 0);
	assert_int_equal(libvirt_new(&f->ctx, &f->ctx.libvirt), 0);
	assert_int_equal(native_new(&f->ctx.native, NULL), 0);
	assert_int_equal(server_new(f->ctx.event, NULL, NULL, NULL, NULL, &f->ctx.server, NULL), 0);
}

static void end_daemon(struct fixture *f)
{
	upgrade_free_all(&f->ctx);
	systemd_freep(&f->ctx.systemd);
	server_freep(&f->ctx.server);
	native_freep(&f->ctx.native);
	libvirt_freep(&f->ctx.libvirt);
	registry_freep(&f->ctx.registry);
	history_freep(&f->ctx.history);
	journal_freep(&f->ctx.journal);
	fd_store_freep(&f->ctx.fd_store);
	sd_event_unref(f->ctx.event);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	char work[80];
	sigset_t mask;

	assert_non_null(f);
	strcpy(f->dir, "/tmp/upgraded-recovery-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(work, sizeof(work), "%s/work", f->dir);
	assert_int_equal(mkdir(work, 0700), 0);
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	start_daemon(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char command[96];

	end_daemon(f);
	snprintf(command, sizeof(command), "rm -r %s", f->dir);
	assert_int_equal(system(command), 0);
	free(f);
	return 0;
}

static void append(struct fixture *f, JournalRecord *record, int kind)
{
	record->kind = (Upgraded__V1__JournalRecord__Kind)kind;
	record->upgrade_id = ID;
	assert_int_equal(journal_append(f->ctx.journal, record, NULL), 0);
}

static pid_t start_process(void)
{
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	return pid;
}

static struct vm *add_vm(struct fixture *f)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;
	struct vm *vm = NULL;
	pid_t pid = start_process();

	assert_int_equal(process_read(pid, &facts, NULL), 0);
	assert_int_equal(
		registry_add(f->ctx.registry, "web", "qemu", "none", "", &facts, "/x", &vm, NULL),
		0);
	return vm;
}

static void end_vm(struct vm *vm)
{
	kill(vm->pb->process->pid, SIGKILL);
	waitpid(vm->pb->process->pid, NULL, 0);
}

/* A VM, known, whose process has ended, and the beginning of an upgrade of it. */
static void begin_upgrade(struct fixture *f)
{
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;
	WorkerStart start = UPGRADED__V1__WORKER_START__INIT;
	struct vm *vm = add_vm(f);
	char work[80];

	end_vm(vm);
	snprintf(work, sizeof(work), "%s/work/%d", f->dir, ID);
	start.upgrade_id = ID;
	start.vm = vm->pb;
	start.work_dir = work;
	record.start = &start;
	append(f, &record, KIND(INTENT));
}

static int count(const JournalRecord *record, void *userdata)
{
	unsigned *n = userdata;

	n[record->kind]++;
	return 0;
}

static unsigned records(struct fixture *f, int kind)
{
	unsigned n[16] = { 0 };

	assert_int_equal(journal_replay(f->ctx.journal, count, n, NULL), 0);
	return n[kind];
}

static int recover(struct fixture *f)
{
	_cleanup_error_ struct error err = ERROR_INIT;

	return recover_all(&f->ctx, &err);
}

/* With a worker's note that names @pid. */
static void note_worker(struct fixture *f, pid_t pid)
{
	char path[96];

	snprintf(path, sizeof(path), "%s/work/%d", f->dir, ID);
	assert_int_equal(work_dir_write_worker(path, pid), 0);
}

static void upgrade_that_cannot_be_taken_up_now_is_left_to_the_next_daemon(void **state)
{
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;
	struct fixture *f = *state;
	struct rlimit limit;
	int r;

	begin_upgrade(f);
	append(f, &record, KIND(COMMIT));
	note_worker(f, getpid());
	/* For the pidfd of the source; for the worker's note; for the worker's pidfd. */
	for (int i = 0; i < 3; i++) {
		end_daemon(f);
		start_daemon(f);
		limit = few_fds(i);
		r = recover(f);
		enough_fds(&limit);
		assert_int_equal(r, -EMFILE);
		assert_int_equal(records(f, KIND(END)), 0);
		assert_null(f->ctx.upgrades);
	}
	end_daemon(f);
	start_daemon(f);
	assert_int_equal(recover(f), 0);
	assert_non_null(f->ctx.upgrades);
	assert_true(f->ctx.upgrades->committed);
	/* It is waited for. */
	assert_true(f->ctx.upgrades->past_worker >= 0);
}

static void committed_upgrade_of_a_vm_that_is_not_known_is_taken_up(void **state)
{
	JournalRecord record = UPGRADED__V1__JOURNAL_RECORD__INIT;
	struct fixture *f = *state;
	char file[96];

	begin_upgrade(f);
	append(f, &record, KIND(COMMIT));
	end_daemon(f);
	snprintf(file, sizeof(file), "%s/vms/web", f->dir);
	assert_int_equal(unlink(file), 0);
	start_daemon(f);
	assert_int_equal(recover(f), 0);
	assert_non_null(f->ctx.upgrades);
	assert_true(f->ctx.upgrades->committed);
	assert_int_equal(records(f, KIND(END)), 0);
	assert_non_null(registry_find(f->ctx.registry, "web"));
	assert_int_equal(access(file, F_OK), 0);
}

static void write_file(struct fixture *f, const char *name, const char *text, char ret_path[80])
{
	FILE *file;

	snprintf(ret_path, 80, "%s/%s", f->dir, name);
	file = fopen(ret_path, "w");
	assert_non_null(file);
	fputs(text, file);
	assert_int_equal(fclose(file), 0);
	assert_int_equal(chmod(ret_path, 0700), 0);
}

static void worker_that_has_its_order_is_known_to_the_next_daemon(void **state)
{
	struct fixture *f = *state;
	char faults[80], worker[80], work[96];
	int status, fd;
	pid_t pid;

	begin_upgrade(f);
	end_daemon(f);
	snprintf(work, sizeof(work), "%s/work/%d", f->dir, ID);
	write_file(f, "faults", "daemon.worker-started kill\n", faults);
	write_file(f, "worker", "#!/bin/sh\nexec sleep 3 >/dev/null 2>&1\n", worker);
	pid = fork();
	if (!pid) {
		setenv("UPGRADED_FAULTS", faults, 1);
		fault_points_on = true;
		start_daemon(f);
		f->ctx.options.worker = worker;
		recover(f);
		upgrade_on_recovery(NULL, 0, f->ctx.upgrades);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	start_daemon(f);
	assert_int_equal(work_dir_open_worker(work, &fd), 0);
	close(fd);
}

/* This one, to be started once more; not by /proc/self/exe, which is valgrind's under valgrind. */
static const char *own_program(void)
{
	static char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

	assert_true(n > 0);
	path[n] = '\0';
	return path;
}

/* Asks the daemon, as a worker; what it answers. */
static int ask(Envelope *env, const int *fds, size_t n)
{
	static uint64_t id;

	env->id = ++id;
	if (wire_send(3, env, fds, n) < 0)
		exit(EXIT_FAILURE);
	for (;;) {
		_cleanup_scm_fds_ struct scm_fds got = SCM_FDS_INIT;
		_cleanup_envelope_ Envelope *answer = NULL;

		if (wire_recv(3, &answer, &got) < 0)
			exit(EXIT_FAILURE);
		if (answer->body_case != BODY(WORKER_START))
			return (int)answer->body_case;
	}
}

static int put_target(const Process *process, int fd)
{
	Upgraded__V1__TargetPlan plan = UPGRADED__V1__TARGET_PLAN__INIT;
	CustodyPut put = UPGRADED__V1__CUSTODY_PUT__INIT;
	Envelope env = ENVELOPE_INIT;

	env.body_case = BODY(CUSTODY_PUT);
	env.custody_put = &put;
	put.name = (char *)"target";
	put.target = (Process *)process;
	put.plan = &plan;
	plan.tier = UPGRADED__V1__TIER__TIER_STAGE2;
	return ask(&env, &fd, fd >= 0);
}

static int ask_commit(bool parked)
{
	Upgraded__V1__CommitRequest commit = UPGRADED__V1__COMMIT_REQUEST__INIT;
	Envelope env = ENVELOPE_INIT;

	env.body_case = BODY(COMMIT);
	env.commit = &commit;
	commit.parked = parked;
	return ask(&env, NULL, 0);
}

static int report(Upgraded__V1__Outcome outcome)
{
	Upgraded__V1__WorkerDone done = UPGRADED__V1__WORKER_DONE__INIT;
	Report report = UPGRADED__V1__REPORT__INIT;
	Envelope env = ENVELOPE_INIT;

	env.body_case = BODY(WORKER_DONE);
	env.worker_done = &done;
	done.report = &report;
	report.outcome = outcome;
	if (outcome == OUTCOME(COMMITTED))
		report.blackout_us = BLACKOUT_US;
	if (outcome == OUTCOME(LOST))
		report.error = (char *)"the target does not answer";
	return wire_send(3, &env, NULL, 0) < 0;
}

/* Does nothing but wait, as a worker does that keeps its deadlines. */
static int wait_for_ever(void)
{
	Upgraded__V1__WorkerWaits waits = UPGRADED__V1__WORKER_WAITS__INIT;
	Envelope env = ENVELOPE_INIT;

	env.body_case = BODY(WORKER_WAITS);
	env.worker_waits = &waits;
	while (!wire_send(3, &env, NULL, 0))
		usleep(50000);
	return 1;
}

static int say_once_and_hang(void)
{
	Upgraded__V1__Event event = UPGRADED__V1__EVENT__INIT;
	Envelope env = ENVELOPE_INIT;

	env.body_case = BODY(EVENT);
	env.event = &event;
	if (wire_send(3, &env, NULL, 0) < 0)
		return 1;
	sleep(20);
	return 1;
}

/* What runs when TEST_WORKER is set, in place of a worker. */
static int be_worker(const char *what)
{
	Process process = UPGRADED__V1__PROCESS__INIT;
	int fd = pidfd_open(getpid(), 0);
	Envelope nothing = ENVELOPE_INIT;
	bool good;

	if (!strcmp(what, "hang"))
		return say_once_and_hang();
	if (!strcmp(what, "wait"))
		return wait_for_ever();
	if (!strcmp(what, "lost"))
		return report(OUTCOME(LOST));
	if (!strcmp(what, "committed"))
		return report(OUTCOME(COMMITTED));
	if (!strcmp(what, "target")) {
		good = put_target(NULL, fd) == BODY(ERROR) && put_target(&process, fd) == BODY(ERROR);
		process.pid = getpid();
		return good && put_target(&process, -EBADF) == BODY(ERROR) ? 0 : 1;
	}
	process.pid = getpid();
	if (!strcmp(what, "last-commit"))
		return put_target(&process, fd) == BODY(ACK) && ask_commit(true) == BODY(ACK) &&
				       wire_send(3, &nothing, NULL, 0) == -EPIPE
			       ? 0
			       : 1;
	return put_target(&process, fd) == BODY(ACK) && ask_commit(false) == BODY(ERROR) &&
			       ask_commit(true) == BODY(ACK)
		       ? 0
		       : 1;
}

/* Lets the daemon's worker be be_worker(), until it has ended. */
static void run_worker(struct fixture *f, struct upgrade *u, const char *what)
{
	setenv("TEST_WORKER", what, 1);
	while (!u->tries)
		assert_true(sd_event_run(f->ctx.event, 10000000) > 0);
	unsetenv("TEST_WORKER");
}

static void target_that_is_no_process_is_not_held(void **state)
{
	struct fixture *f = *state;
	struct upgrade *u;

	begin_upgrade(f);
	assert_int_equal(recover(f), 0);
	u = f->ctx.upgrades;
	f->ctx.options.worker = own_program();
	run_worker(f, u, "target");
	assert_null(custody_find(&u->custody, "target"));
}

/* Whatever was planned: a target may have come to a lower tier. */
static void source_that_runs_is_let_be_only_if_the_kernel_keeps_it(void **state)
{
	Upgraded__V1__UpgradeRequest request = UPGRADED__V1__UPGRADE_REQUEST__INIT;
	struct requester from = { 0 };
	struct fixture *f = *state;
	struct vm *vm = add_vm(f);

	f->ctx.options.worker = own_program();
	f->ctx.options.max_running = 1;
	request.phase_timeout_us = 1000000;
	setenv("TEST_WORKER", "commit", 1);
	assert_int_equal(upgrade_request(&f->ctx, vm, &request, &from, NULL), 0);
	assert_non_null(vm->upgrade);
	run_worker(f, vm->upgrade, "commit");
	if (!strstr(vm->upgrade->failure, "status 0"))
		fail_msg("%s", vm->upgrade->failure);
	assert_true(vm->upgrade->committed && vm->upgrade->parked);
	assert_null(vm->upgrade->watch);
	end_daemon(f);
	start_daemon(f);
	assert_int_equal(recover(f), 0);
	assert_true(f->ctx.upgrades->committed && f->ctx.upgrades->parked);
	assert_null(f->ctx.upgrades->watch);
	end_vm(f->ctx.upgrades->vm);
}

static void request_for_commit_is_answered_before_the_daemon_ends(void **state)
{
	Upgraded__V1__UpgradeRequest request = UPGRADED__V1__UPGRADE_REQUEST__INIT;
	struct requester from = { 0 };
	struct fixture *f = *state;
	struct vm *vm = add_vm(f);

	f->ctx.options.worker = own_program();
	f->ctx.options.max_running = 1;
	setenv("TEST_WORKER", "last-commit", 1);
	assert_int_equal(upgrade_request(&f->ctx, vm, &request, &from, NULL), 0);
	while (!custody_find(&vm->upgrade->custody, "target"))
		assert_true(sd_event_run(f->ctx.event, 10000000) > 0);
	unsetenv("TEST_WORKER");
	/* Nothing is read meanwhile: it asks for COMMIT. */
	usleep(300000);
	assert_false(vm->upgrade->committed);
	upgrade_hear_out_all(&f->ctx);
	assert_true(vm->upgrade->committed);
	while (!vm->upgrade->tries)
		assert_true(sd_event_run(f->ctx.event, 10000000) > 0);
	if (!strstr(vm->upgrade->failure, "status 0"))
		fail_msg("%s", vm->upgrade->failure);
	end_vm(vm);
}

/* Whatever time the operator gave to the phases: it keeps these deadlines itself. */
static void worker_that_keeps_its_own_deadline_is_not_taken_for_hung(void **state)
{
	struct fixture *f = *state;
	uint64_t hung = 12 * 1000000ULL;
	struct upgrade *u;

	begin_upgrade(f);
	assert_int_equal(recover(f), 0);
	u = f->ctx.upgrades;
	u->start->phase_timeout_us = 1000000;
	u->start->max_blackout_us = 1000000;
	u->next_worker_mode = UPGRADED__V1__WORKER_MODE__WORKER_UPGRADE;
	u->phase = PHASE(FREEZE);
	assert_int_equal(upgrade_silence_us(u), hung);
	u->start->max_blackout_us = 300 * 1000000ULL;
	assert_true(upgrade_silence_us(u) > u->start->max_blackout_us);
	u->start->max_blackout_us = 1000000;
	u->phase = PHASE(ROLLBACK);
	assert_true(upgrade_silence_us(u) > LAST_RESORT_US);
	u->phase = PHASE(SWITCH);
	u->committed = true;
	assert_true(upgrade_silence_us(u) > LAST_RESORT_US);
	u->committed = false;
	/* The time to start a target, and then to end it. */
	u->next_worker_mode = UPGRADED__V1__WORKER_MODE__WORKER_REBUILD;
	assert_true(upgrade_silence_us(u) > REBUILD_LEAST_US + LAST_RESORT_US);
	/* A record of a version that did not say. */
	u->start->phase_timeout_us = u->start->max_blackout_us = 0;
	u->next_worker_mode = UPGRADED__V1__WORKER_MODE__WORKER_UPGRADE;
	u->phase = PHASE(PREPARE);
	assert_true(upgrade_silence_us(u) > 2 * DEFAULT_PHASE_LIMIT_US);
}

static void one_that_hangs_is_found_soon_while_the_guest_stands_still(void **state)
{
	struct fixture *f = *state;
	struct upgrade *u;

	begin_upgrade(f);
	assert_int_equal(recover(f), 0);
	u = f->ctx.upgrades;
	u->next_worker_mode = UPGRADED__V1__WORKER_MODE__WORKER_UPGRADE;
	u->phase = PHASE(CHECK);
	assert_true(upgrade_stuck_us(u) == UINT64_MAX);
	u->phase = PHASE(FREEZE);
	assert_int_equal(upgrade_stuck_us(u), STUCK_US);
	u->phase = PHASE(RUN);
	assert_int_equal(upgrade_stuck_us(u), STUCK_US);
	u->phase = PHASE(DONE);
	assert_true(upgrade_stuck_us(u) == UINT64_MAX);
	u->phase = PHASE(ROLLBACK);
	assert_int_equal(upgrade_stuck_us(u), STUCK_US);
	u->next_worker_mode = UPGRADED__V1__WORKER_MODE__WORKER_REBUILD;
	u->phase = PHASE(PREPARE);
	assert_int_equal(upgrade_stuck_us(u), STUCK_US);
}

struct heard {
	unsigned n;
	bool ended;
	char how[64];
};

static int on_heard(Envelope *env, struct scm_fds *fds, void *userdata)
{
	struct heard *h = userdata;

	h->n++;
	return 0;
}

static void on_end_of_heard(const char *how, void *userdata)
{
	struct heard *h = userdata;

	h->ended = true;
	snprintf(h->how, sizeof(h->how), "%s", how);
}

/* After its first message it is expected to be quick. */
static uint64_t silence_of_heard(void *userdata)
{
	const struct heard *h = userdata;

	return h->n ? 300000 : 60000000;
}

static uint64_t a_second(void *userdata)
{
	return 1000000;
}

static uint64_t a_minute(void *userdata)
{
	return 60000000;
}

static uint64_t soon(void *userdata)
{
	return 300000;
}

/* Until it was killed; for how long it lived, in us. */
static uint64_t outlive(struct fixture *f, const char *what, const struct worker_ops *ops,
			struct heard *h)
{
	_cleanup_(worker_process_freep) struct worker_process *w = NULL;
	WorkerStart start = UPGRADED__V1__WORKER_START__INIT;
	struct vm *vm = add_vm(f);
	struct worker_order order = {
		.program = own_program(),
		.start = &start,
		.source_pidfd = vm->pidfd,
		.target_pidfd = -EBADF,
		.ops = ops,
		.userdata = h,
	};
	uint64_t begin = now_us();

	start.vm = vm->pb;
	setenv("TEST_WORKER", what, 1);
	assert_int_equal(worker_process_start(f->ctx.event, &order, &w, NULL), 0);
	unsetenv("TEST_WORKER");
	while (!h->ended)
		assert_true(sd_event_run(f->ctx.event, 10000000) > 0);
	assert_string_equal(h->how, "was killed by signal 9");
	end_vm(vm);
	return now_us() - begin;
}

static void patience_with_a_worker_follows_what_it_does(void **state)
{
	static const struct worker_ops ops = { on_heard, on_end_of_heard, silence_of_heard, NULL };
	struct heard h = { 0 };

	outlive(*state, "hang", &ops, &h);
	assert_int_equal(h.n, 1);
}

static void a_worker_that_does_not_even_wait_is_killed_soon(void **state)
{
	static const struct worker_ops ops = { on_heard, on_end_of_heard, a_minute, soon };
	struct heard h = { 0 };

	assert_true(outlive(*state, "hang", &ops, &h) >= 300000);
	assert_int_equal(h.n, 1);
}

/* That it waits is no message: its deadlines may have failed. */
static void a_worker_that_waits_has_its_time_and_no_more(void **state)
{
	static const struct worker_ops ops = { on_heard, on_end_of_heard, a_second, soon };
	struct heard h = { 0 };

	assert_true(outlive(*state, "wait", &ops, &h) >= 1000000);
	assert_int_equal(h.n, 0);
}

/* It has waited for as long as it does, and libvirt's daemon has started. */
static void start_of_libvirt_that_is_waited_for_by_nobody_is_forgotten(void **state)
{
	struct requester from = { 0 };
	struct fixture *f = *state;
	struct upgrade *u;

	begin_upgrade(f);
	assert_int_equal(recover(f), 0);
	u = f->ctx.upgrades;
	assert_int_equal(message_set_string(&u->vm->pb->manager, "libvirt"), 0);
	u->phase = PHASE(FREEZE);
	for (int i = 0; i < 20; i++) {
		from.client++;
		assert_int_equal(libvirt_starting(&f->ctx, &from, NULL), 0);
		libvirt_closed(&f->ctx, from.client);
	}
}

static void put(struct upgrade *u, const char *name, int fd)
{
	_cleanup_scm_fds_ struct scm_fds fds = { .n = 1, .fd = { fd } };
	CustodyPut msg = UPGRADED__V1__CUSTODY_PUT__INIT;

	msg.name = (char *)name;
	assert_int_equal(custody_put(&u->custody, &msg, false, &fds, NULL), 0);
}

/* An upgrade of a domain of libvirt's that is committed, and its target, which is alive. */
static struct vm *begin_committed(struct fixture *f)
{
	CustodyPut msg = UPGRADED__V1__CUSTODY_PUT__INIT;
	Process target = UPGRADED__V1__PROCESS__INIT;
	struct scm_fds none = SCM_FDS_INIT;
	struct upgrade *u;

	begin_upgrade(f);
	assert_int_equal(recover(f), 0);
	u = f->ctx.upgrades;
	u->committed = true;
	assert_int_equal(message_set_string(&u->vm->pb->manager, "libvirt"), 0);
	target.pid = start_process();
	assert_int_equal(process_start_time(target.pid, &target.start_time), 0);
	msg.name = (char *)"target";
	msg.target = &target;
	assert_int_equal(custody_put(&u->custody, &msg, false, &none, NULL), 0);
	f->ctx.options.worker = own_program();
	return u->vm;
}

static void end_target(struct vm *vm)
{
	pid_t pid = custody_find(&vm->upgrade->custody, "target")->put->target->pid;

	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* Has the next worker be be_worker(), until it has ended. */
static void run_next_worker(struct fixture *f, struct vm *vm, const char *what)
{
	struct upgrade *u = vm->upgrade;

	setenv("TEST_WORKER", what, 1);
	oneshot_arm(u->later, 0);
	while (!u->worker)
		assert_true(sd_event_run(f->ctx.event, 10000000) > 0);
	unsetenv("TEST_WORKER");
	while (vm->upgrade && u->worker)
		assert_true(sd_event_run(f->ctx.event, 10000000) > 0);
}

/* What the one before it found out is of a target that answered then. */
static void worker_that_could_not_finish_is_followed_by_another(void **state)
{
	struct fixture *f = *state;
	struct vm *vm = begin_committed(f);

	vm->upgrade->finish = message_new(&upgraded__v1__finish_request__descriptor);
	assert_non_null(vm->upgrade->finish);
	run_next_worker(f, vm, "lost");
	assert_non_null(vm->upgrade);
	assert_true(vm->upgrade->puts_off);
	assert_int_equal(records(f, KIND(END)), 0);
	end_target(vm);
}

/* The only report in the history; freed by the caller. */
static Report *read_report(struct fixture *f)
{
	Report **reports, *report;
	size_t n;

	assert_int_equal(history_read(f->ctx.history, "", 0, &reports, &n), 0);
	assert_int_equal(n, 1);
	report = TAKE_PTR(reports[0]);
	history_free_reports(reports, n);
	return report;
}

/* A target that ends before it was found under its name, as of a guest that is shut down. */
static void guest_that_was_seen_to_run_is_not_lost(void **state)
{
	_cleanup_message_ Report *report = NULL;
	struct fixture *f = *state;
	struct vm *vm = begin_committed(f);

	run_next_worker(f, vm, "committed");
	assert_non_null(vm->upgrade);
	assert_true(vm->upgrade->puts_off);
	end_target(vm);
	run_next_worker(f, vm, "lost");
	assert_null(vm->upgrade);
	report = read_report(f);
	assert_int_equal(report->outcome, OUTCOME(COMMITTED));
	assert_int_equal(report->blackout_us, BLACKOUT_US);
	assert_string_equal(report->error, "");
}

static void upgrade_that_waits_ends_when_it_is_aborted(void **state)
{
	Upgraded__V1__UpgradeRequest request = UPGRADED__V1__UPGRADE_REQUEST__INIT;
	_cleanup_message_ Report *report = NULL;
	struct requester from = { 0 };
	struct fixture *f = *state;
	struct vm *vm = add_vm(f);

	f->ctx.options.max_running = 1;
	/* A check of it, which takes as long as it takes. */
	vm->working = true;
	assert_int_equal(upgrade_request(&f->ctx, vm, &request, &from, NULL), 0);
	assert_non_null(vm->upgrade);
	assert_int_equal(upgrade_abort(vm->upgrade, NULL), 0);
	assert_null(vm->upgrade);
	assert_true(vm->working);
	report = read_report(f);
	assert_int_equal(report->outcome, OUTCOME(REFUSED));
	assert_string_equal(report->error, "aborted before it began");
	/* And not since this machine was booted. */
	assert_true(report->total_us < 1000000);
	assert_true(report->started_at_us + 60000000 > realtime_us());
	end_vm(vm);
}

/* As by who corrects the clock on the wall. */
static void clock_that_was_set_back_does_not_make_an_upgrade_old(void **state)
{
	WorkerStart start = UPGRADED__V1__WORKER_START__INIT;
	struct unfinished unfinished = { .start = &start };
	struct fixture *f = *state;
	struct vm *vm = add_vm(f);
	char work[80];

	snprintf(work, sizeof(work), "%s/work/%d", f->dir, ID);
	start.upgrade_id = ID;
	start.vm = vm->pb;
	start.work_dir = work;
	unfinished.at_us = realtime_us() + 3600000000;
	assert_int_equal(upgrade_resume(&f->ctx, vm, &unfinished, NULL), 0);
	assert_true(now_us() - vm->upgrade->began_us < 60000000);
	end_vm(vm);
}

static void guest_in_custody_waits_for_as_long_as_no_worker_can_be_started(void **state)
{
	struct fixture *f = *state;
	struct rlimit limit;
	struct upgrade *u;
	int fd;

	begin_upgrade(f);
	assert_int_equal(recover(f), 0);
	u = f->ctx.upgrades;
	assert_non_null(u);
	assert_int_equal(device_state_make(&fd), 0);
	assert_int_equal(device_state_complete(fd), 0);
	put(u, DEVICE_STATE, fd);
	assert_int_equal(device_state_make(&fd), 0);
	put(u, "start", fd);
	assert_true(upgrade_can_rebuild(u));
	limit = few_fds(0);
	/* Once a second, in the daemon. */
	for (int i = 0; i < 30; i++)
		assert_int_equal(upgrade_on_recovery(NULL, 0, u), 0);
	enough_fds(&limit);
	assert_int_equal(u->short_of, EMFILE);
	assert_int_equal(u->next_worker_mode, UPGRADED__V1__WORKER_MODE__WORKER_REBUILD);
	assert_true(upgrade_can_rebuild(u));
	assert_int_equal(records(f, KIND(REBUILD)), 1);
	assert_int_equal(records(f, KIND(END)), 0);
}

static void upgraded_vm_is_its_target_though_nothing_can_be_read_now(void **state)
{
	_cleanup_process_facts_ struct process_facts facts = PROCESS_FACTS_INIT;
	struct fixture *f = *state;
	struct rlimit limit;
	struct upgrade *u;
	struct vm *vm;
	pid_t target;

	begin_upgrade(f);
	assert_int_equal(recover(f), 0);
	u = f->ctx.upgrades;
	vm = u->vm;
	target = start_process();
	assert_int_equal(process_read(target, &facts, NULL), 0);
	u->committed = true;
	u->report = TAKE_PTR(u->spare);
	u->report->outcome = OUTCOME(COMMITTED);
	u->report->target = message_new(&upgraded__v1__process__descriptor);
	u->report->target->pid = target;
	u->report->target->start_time = facts.start_time;
	assert_int_equal(message_set_string(&u->report->target_binary, "/new"), 0);
	limit = few_fds(0);
	upgrade_end(u);
	enough_fds(&limit);
	assert_int_equal(vm->pb->process->pid, target);
	assert_string_equal(vm->pb->binary, "/new");
	assert_true(vm->pb->since_us + 1000000 > facts.since_us);
	assert_true(vm->pb->since_us < facts.since_us + 1000000);
	assert_false(vm_has_ended(vm));
	while (vm->pidfd < 0)
		assert_true(sd_event_run(f->ctx.event, 10000000) > 0);
	end_vm(vm);
}

int main(void)
{
	if (getenv("TEST_WORKER"))
		return be_worker(getenv("TEST_WORKER"));
	/* A worker that is started when no test expects one must not run them all, and start more. */
	if (getenv("TEST_RUNS"))
		return EXIT_FAILURE;
	setenv("TEST_RUNS", "yes", 1);

	const struct CMUnitTest tests[] = {
#define TEST(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
		TEST(upgrade_that_cannot_be_taken_up_now_is_left_to_the_next_daemon),
		TEST(committed_upgrade_of_a_vm_that_is_not_known_is_taken_up),
		TEST(worker_that_has_its_order_is_known_to_the_next_daemon),
		TEST(target_that_is_no_process_is_not_held),
		TEST(source_that_runs_is_let_be_only_if_the_kernel_keeps_it),
		TEST(request_for_commit_is_answered_before_the_daemon_ends),
		TEST(worker_that_keeps_its_own_deadline_is_not_taken_for_hung),
		TEST(patience_with_a_worker_follows_what_it_does),
		TEST(a_worker_that_does_not_even_wait_is_killed_soon),
		TEST(a_worker_that_waits_has_its_time_and_no_more),
		TEST(one_that_hangs_is_found_soon_while_the_guest_stands_still),
		TEST(upgraded_vm_is_its_target_though_nothing_can_be_read_now),
		TEST(start_of_libvirt_that_is_waited_for_by_nobody_is_forgotten),
		TEST(worker_that_could_not_finish_is_followed_by_another),
		TEST(guest_that_was_seen_to_run_is_not_lost),
		TEST(upgrade_that_waits_ends_when_it_is_aborted),
		TEST(clock_that_was_set_back_does_not_make_an_upgrade_old),
		TEST(guest_in_custody_waits_for_as_long_as_no_worker_can_be_started),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
