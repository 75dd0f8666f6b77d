/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A daemon that only talks: it answers upgradectl's requests with samples, so
 * that the command can be tested without a VM. What happens depends on the
 * name of the VM in the request:
 *
 *   absent, denied, taken, broken   a typed error
 *   mute           no answer, the connection is closed
 *   garbage        an answer that is no message
 *   parts          an answer in parts that is no list
 *   fds            an answer with a file descriptor nobody asked for
 *   blocked        refused, with findings
 *   rollback, lost, dies, early     how its upgrade ends
 *   slow           its upgrade waits to be aborted
 *   stuck          its upgrade ignores that
 *   others         all is well
 *
 * One process per connection; they meet only in the file "PATH.abort".
 */
#include "fake_daemon.h"

#include "sample.h"
#include "wire.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#define NOON (1795176000ULL * 1000000)

struct connection {
	int sock;
	uint64_t id; /* of the request being answered */
	char abort_mark[128];
	struct sample sample;
};

static void answer(struct connection *c, Upgraded__V1__Envelope__BodyCase kind, void *body)
{
	Envelope env = ENVELOPE_INIT;

	env.id = c->id;
	env.body_case = kind;
	env.ack = body; /* any member of the union */
	if (wire_send(c->sock, &env, NULL, 0) < 0)
		_exit(1);
}

#define ANSWER(c, KIND, body) answer(c, UPGRADED__V1__ENVELOPE__BODY_##KIND, body)

static void answer_ack(struct connection *c)
{
	Upgraded__V1__Ack ack = UPGRADED__V1__ACK__INIT;

	ANSWER(c, ACK, &ack);
}

static void answer_error(struct connection *c, Upgraded__V1__ErrorCode code, const char *text,
			 const char *hint)
{
	Upgraded__V1__Error error = UPGRADED__V1__ERROR__INIT;

	error.code = code;
	error.text = (char *)text;
	error.hint = (char *)hint;
	if (code == UPGRADED__V1__ERROR_CODE__ERROR_REFUSED) {
		error.findings = c->sample.blocked->findings;
		error.n_findings = c->sample.blocked->n_findings;
	}
	ANSWER(c, ERROR, &error);
}

/* True if the name alone settled the request. */
static bool settled_by_name(struct connection *c, const char *name)
{
	if (!strcmp(name, "absent")) {
		answer_error(c, UPGRADED__V1__ERROR_CODE__ERROR_NO_SUCH_VM,
			     "there is no VM \"absent\"", "upgradectl list");
	} else if (!strcmp(name, "denied")) {
		answer_error(c, UPGRADED__V1__ERROR_CODE__ERROR_DENIED,
			     "uid 1000 may not upgrade \"denied\"", "");
	} else if (!strcmp(name, "taken")) {
		answer_error(c, UPGRADED__V1__ERROR_CODE__ERROR_BUSY,
			     "upgrade 8 of \"taken\" is under way", "upgradectl watch taken");
	} else if (!strcmp(name, "broken")) {
		answer_error(c, UPGRADED__V1__ERROR_CODE__ERROR_INTERNAL, "", "");
	} else if (!strcmp(name, "mute")) {
		_exit(0);
	} else if (!strcmp(name, "parts")) {
		Upgraded__V1__Ack ack = UPGRADED__V1__ACK__INIT;
		Envelope env = ENVELOPE_INIT;

		env.id = c->id;
		env.body_case = UPGRADED__V1__ENVELOPE__BODY_ACK;
		env.ack = &ack;
		for (env.batches_left = 2; env.batches_left--;)
			wire_send(c->sock, &env, NULL, 0);
	} else if (!strcmp(name, "garbage")) {
		(void)!write(c->sock, "\xff\xff", 2);
	} else if (!strcmp(name, "fds")) {
		Upgraded__V1__Ack ack = UPGRADED__V1__ACK__INIT;
		Envelope env = ENVELOPE_INIT;

		env.id = c->id;
		env.body_case = UPGRADED__V1__ENVELOPE__BODY_ACK;
		env.ack = &ack;
		wire_send(c->sock, &env, (int[]){ c->sock }, 1);
	} else {
		return false;
	}
	return true;
}

static void event(struct connection *c, Upgraded__V1__Phase phase, uint64_t elapsed_us,
		  const char *text, Upgraded__V1__Report *report)
{
	Upgraded__V1__Event e = UPGRADED__V1__EVENT__INIT;
	uint64_t id = c->id;

	e.upgrade_id = 7;
	e.vm = "vm1";
	e.phase = phase;
	e.elapsed_us = elapsed_us;
	e.at_us = NOON + elapsed_us;
	e.text = (char *)text;
	e.report = report;
	c->id = 0; /* unsolicited */
	ANSWER(c, EVENT, &e);
	c->id = id;
}

static void play_to_the_end(struct connection *c)
{
	event(c, UPGRADED__V1__PHASE__PHASE_LOAD, 1718214, "", NULL);
	event(c, UPGRADED__V1__PHASE__PHASE_SWITCH, 1739214, "", NULL);
	event(c, UPGRADED__V1__PHASE__PHASE_RUN, 1743214, "", NULL);
	event(c, UPGRADED__V1__PHASE__PHASE_DONE, 1748214, "", NULL);
}

static bool wait_for_abort(struct connection *c)
{
	for (int i = 0; i < 200; i++) {
		if (!access(c->abort_mark, F_OK))
			return true;
		usleep(50 * 1000);
	}
	return false;
}

static void upgrade(struct connection *c, const char *name)
{
	Upgraded__V1__UpgradeStarted started = UPGRADED__V1__UPGRADE_STARTED__INIT;
	Upgraded__V1__Report *report = c->sample.committed;

	if (!strcmp(name, "blocked")) {
		answer_error(c, UPGRADED__V1__ERROR_CODE__ERROR_REFUSED,
			     "the upgrade of \"blocked\" is refused: 2 blockers",
			     "upgradectl check blocked");
		return;
	}
	started.upgrade_id = 7;
	ANSWER(c, UPGRADE_STARTED, &started);
	event(c, UPGRADED__V1__PHASE__PHASE_PREPARE, 0, "starting the target", NULL);
	if (!strcmp(name, "slow") || !strcmp(name, "stuck")) {
		bool asked = wait_for_abort(c);

		if (!strcmp(name, "stuck") || !asked)
			sleep(10);
		event(c, UPGRADED__V1__PHASE__PHASE_ROLLBACK, 2000000, "aborted", NULL);
		ANSWER(c, REPORT, c->sample.rolled_back);
		return;
	}
	event(c, UPGRADED__V1__PHASE__PHASE_CHECK, 1612000, "", NULL);
	event(c, UPGRADED__V1__PHASE__PHASE_FREEZE, 1710000, "", NULL);
	if (!strcmp(name, "dies"))
		_exit(1);
	if (!strcmp(name, "rollback")) {
		event(c, UPGRADED__V1__PHASE__PHASE_LOAD, 1718214, "", NULL);
		event(c, UPGRADED__V1__PHASE__PHASE_ROLLBACK, 1739214, "", NULL);
		report = c->sample.rolled_back;
	} else {
		play_to_the_end(c);
	}
	if (!strcmp(name, "lost"))
		report = c->sample.lost;
	/* The report may come with the last event instead. */
	if (!strcmp(name, "early"))
		event(c, UPGRADED__V1__PHASE__PHASE_DONE, 1748214, "", report);
	else
		ANSWER(c, REPORT, report);
}

static void watch(struct connection *c)
{
	answer_ack(c);
	event(c, UPGRADED__V1__PHASE__PHASE_FREEZE, 1710000, "", NULL);
	event(c, UPGRADED__V1__PHASE__PHASE_DONE, 1748214, "first instruction ran",
	      c->sample.committed);
	_exit(0);
}

static void mark_aborted(struct connection *c)
{
	close(open(c->abort_mark, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
}

static void run(struct connection *c, const Upgraded__V1__RunRequest *request)
{
	static char joined[512];

	/* The argv comes back where the test can see it. */
	joined[0] = '\0';
	for (size_t i = 0; i < request->n_argv; i++)
		snprintf(joined + strlen(joined), sizeof(joined) - strlen(joined), "%s%s",
			 i ? "|" : "", request->argv[i]);
	c->sample.vm[0]->binary = joined;
	ANSWER(c, VM, c->sample.vm[0]);
}

static void adopt(struct connection *c, const Upgraded__V1__AdoptRequest *request)
{
	static char seen[512];

	snprintf(seen, sizeof(seen), "name=%s pid=%d qmp=%s", request->name, request->pid,
		 request->qmp[0] ? strrchr(request->qmp, '/') : "");
	c->sample.vm[0]->qmp = seen;
	ANSWER(c, VM, c->sample.vm[0]);
}

static void list(struct connection *c)
{
	Upgraded__V1__VmList vm_list = UPGRADED__V1__VM_LIST__INIT;
	Envelope env = ENVELOPE_INIT;

	/* In two packets, as a long list comes. */
	env.id = c->id;
	env.body_case = UPGRADED__V1__ENVELOPE__BODY_VM_LIST;
	env.vm_list = &vm_list;
	env.batches_left = 1;
	vm_list.vms = c->sample.vm;
	vm_list.n_vms = 3;
	wire_send(c->sock, &env, NULL, 0);
	env.batches_left = 0;
	vm_list.vms = c->sample.vm + 3;
	vm_list.n_vms = SAMPLE_VMS - 3;
	wire_send(c->sock, &env, NULL, 0);
}

static void metrics(struct connection *c)
{
	static uint64_t up_to_us[] = { 50000, 2500000 }, counts[] = { 3, 4 };
	Upgraded__V1__UpgradeCount committed = UPGRADED__V1__UPGRADE_COUNT__INIT, refused = committed;
	Upgraded__V1__UpgradeCount *upgrades[] = { &committed, &refused };
	Upgraded__V1__Histogram blackout = UPGRADED__V1__HISTOGRAM__INIT;
	Upgraded__V1__PhaseSum freeze = UPGRADED__V1__PHASE_SUM__INIT, *phases[] = { &freeze };
	Upgraded__V1__Metrics m = UPGRADED__V1__METRICS__INIT;

	committed.outcome = UPGRADED__V1__OUTCOME__OUTCOME_COMMITTED;
	committed.tier = UPGRADED__V1__TIER__TIER_STAGE2;
	committed.upgrades = 5;
	refused.outcome = UPGRADED__V1__OUTCOME__OUTCOME_REFUSED;
	blackout.up_to_us = up_to_us;
	blackout.counts = counts;
	blackout.n_up_to_us = blackout.n_counts = 2;
	blackout.count = 5;
	blackout.sum_us = 3141592;
	freeze.phase = UPGRADED__V1__PHASE__PHASE_FREEZE;
	freeze.count = 5;
	freeze.sum_us = 41000;
	m.started_at_us = 1795176000250000;
	m.upgrades = upgrades;
	m.n_upgrades = 2;
	m.blackout = &blackout;
	m.phases = phases;
	m.n_phases = 1;
	m.workers_failed = 2;
	m.rebuilds = 1;
	ANSWER(c, METRICS, &m);
}

/* Only of one VM. */
static void history(struct connection *c, const char *name, uint32_t limit)
{
	Upgraded__V1__Report *all[] = { c->sample.committed, c->sample.rolled_back,
					c->sample.lost };
	Upgraded__V1__History reply = UPGRADED__V1__HISTORY__INIT;

	reply.n_reports = limit && limit < ARRAY_SIZE(all) ? limit : ARRAY_SIZE(all);
	if (name[0] && strcmp(name, "vm1") != 0)
		reply.n_reports = 0;
	reply.reports = all + ARRAY_SIZE(all) - reply.n_reports;
	ANSWER(c, HISTORY_REPLY, &reply);
}

static void serve_request(struct connection *c, const Envelope *request)
{
	c->id = request->id;
	switch ((int)request->body_case) {
	case UPGRADED__V1__ENVELOPE__BODY_LIST:
		list(c);
		break;
	case UPGRADED__V1__ENVELOPE__BODY_SHOW:
		if (!settled_by_name(c, request->show->name))
			ANSWER(c, VM, c->sample.vm[!strcmp(request->show->name, "busy") ? 2 : 0]);
		break;
	case UPGRADED__V1__ENVELOPE__BODY_CHECK:
		if (!settled_by_name(c, request->check->name))
			ANSWER(c, CHECK_REPORT,
			       strcmp(request->check->name, "blocked") ? c->sample.ready
								       : c->sample.blocked);
		break;
	case UPGRADED__V1__ENVELOPE__BODY_UPGRADE:
		if (!settled_by_name(c, request->upgrade->name))
			upgrade(c, request->upgrade->name);
		break;
	case UPGRADED__V1__ENVELOPE__BODY_ABORT:
		if (settled_by_name(c, request->abort->name))
			break;
		mark_aborted(c);
		answer_ack(c);
		break;
	case UPGRADED__V1__ENVELOPE__BODY_WATCH:
		if (!settled_by_name(c, request->watch->name))
			watch(c);
		break;
	case UPGRADED__V1__ENVELOPE__BODY_HISTORY:
		history(c, request->history->name, request->history->limit);
		break;
	case UPGRADED__V1__ENVELOPE__BODY_METRICS_REQUEST:
		metrics(c);
		break;
	case UPGRADED__V1__ENVELOPE__BODY_RUN:
		if (!settled_by_name(c, request->run->name))
			run(c, request->run);
		break;
	case UPGRADED__V1__ENVELOPE__BODY_ADOPT:
		if (!settled_by_name(c, request->adopt->name))
			adopt(c, request->adopt);
		break;
	case UPGRADED__V1__ENVELOPE__BODY_FORGET:
		if (!settled_by_name(c, request->forget->name))
			answer_ack(c);
		break;
	default:
		_exit(1);
	}
}

static void serve_connection(int sock, const char *path)
{
	struct connection c = { .sock = sock };
	Upgraded__V1__Hello hello;

	sample_make(&c.sample);
	snprintf(c.abort_mark, sizeof(c.abort_mark), "%s.abort", path);
	for (;;) {
		_cleanup_scm_fds_ struct scm_fds fds = SCM_FDS_INIT;
		_cleanup_envelope_ Envelope *request = NULL;

		if (wire_recv(sock, &request, &fds) < 0)
			_exit(0);
		if (request->body_case != UPGRADED__V1__ENVELOPE__BODY_HELLO) {
			serve_request(&c, request);
			continue;
		}
		wire_hello(&hello, "fake");
		if (strstr(path, "newer"))
			hello.protocol_min = hello.protocol_max = WIRE_PROTOCOL_MAX + 1;
		c.id = request->id;
		ANSWER(&c, HELLO, &hello);
	}
}

static int listen_on(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strncpy(addr.sun_path, path, sizeof(addr.sun_path) - 1);
	if (sock < 0 || bind(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0 ||
	    listen(sock, 16) < 0) {
		perror(path);
		exit(1);
	}
	return sock;
}

static void serve(int sock, const char *path)
{
	signal(SIGCHLD, SIG_IGN); /* nobody waits for a connection's process */
	for (;;) {
		int c = accept4(sock, NULL, NULL, SOCK_CLOEXEC);

		if (c < 0)
			continue;
		if (!fork()) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			close(sock);
			serve_connection(c, path);
		}
		close(c);
	}
}

int fake_daemon_serve(const char *path)
{
	serve(listen_on(path), path);
	return 0;
}

int fake_daemon_start(const char *path)
{
	int sock = listen_on(path);
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(sock, path);
	}
	close(sock);
	return pid;
}

void fake_daemon_stop(int pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}
