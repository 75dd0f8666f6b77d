/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The new process is what the source is, as /proc shows both, and nothing is left
 * behind when it cannot be, or when who starts it dies. The sources are children of
 * the test; as root they are made as different from the test as Linux allows.
 */
#include "count_fds.h"
#include "names.h"
#include "spawn.h"
#include "spawn_order.h"
#include "temp_dir.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cmocka.h>

struct proc {
	pid_t pid;
	int pidfd;
};

static int open_pidfd(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	assert_true(fd >= 0);
	return fd;
}

static void stop(struct proc *p)
{
	spawn_kill(p->pidfd);
	closep(&p->pidfd);
}

/* Starts a child that runs @prepare and then sleeps as /bin/sleep. */
static struct proc start(void (*prepare)(void))
{
	char *argv[] = { "sleep", "60", NULL };
	char *env[] = { "KEPT=from the source", "PATH=/bin", NULL };
	struct proc p;
	int ready[2];
	char byte;

	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	p.pid = fork();
	if (!p.pid) {
		/* A failed test leaves no source behind (cleared by a change of uid). */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (prepare)
			prepare();
		execve("/bin/sleep", argv, env);
		_exit(1);
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 0);
	close(ready[0]);
	p.pidfd = open_pidfd(p.pid);
	return p;
}

static char *slurp(pid_t pid, const char *name)
{
	char path[64], *text = calloc(1, 16384);
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	f = fopen(path, "re");
	assert_non_null(f);
	for (size_t n = fread(text, 1, 16383, f), i = 0; i < n; i++)
		if (!text[i])
			text[i] = '\n';
	fclose(f);
	return text;
}

static char *target_of(pid_t pid, const char *name)
{
	char path[64], text[4096];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	n = readlink(path, text, sizeof(text));
	return n < 0 ? strdup("none") : strndup(text, (size_t)n);
}

static void same_file(const struct proc *a, const struct proc *b, const char *name)
{
	_cleanup_free_ char *x = slurp(a->pid, name), *y = slurp(b->pid, name);

	if (strcmp(x, y))
		fail_msg("%s of the source:\n%s\nof the target:\n%s", name, x, y);
}

static void same_link(const struct proc *a, const struct proc *b, const char *name)
{
	_cleanup_free_ char *x = target_of(a->pid, name), *y = target_of(b->pid, name);

	if (strcmp(x, y))
		fail_msg("%s of the source: %s, of the target: %s", name, x, y);
}

static void same_status(const struct proc *a, const struct proc *b, const char *key)
{
	_cleanup_free_ char *x = slurp(a->pid, "status"), *y = slurp(b->pid, "status");
	char *p = strstr(x, key), *q = strstr(y, key);

	assert_non_null(p);
	assert_non_null(q);
	p++;
	q++;
	p[strcspn(p, "\n")] = q[strcspn(q, "\n")] = '\0';
	if (strcmp(p, q))
		fail_msg("source has %s, target has %s", p, q);
}

static void same_identity(const struct proc *a, const struct proc *b)
{
	static const char *const files[] = { "environ", "limits", "oom_score_adj", "cgroup" };
	static const char *const links[] = { "cwd",    "root",	 "ns/net",  "ns/ipc",	"ns/uts",
					     "ns/pid", "ns/mnt", "ns/user", "ns/cgroup" };
	static const char *const keys[] = {
		"\nUid:",    "\nGid:",	  "\nGroups:", "\nUmask:",	"\nCapPrm:",
		"\nCapEff:", "\nCapBnd:", "\nCapAmb:", "\nNoNewPrivs:", "\nCpus_allowed_list:"
	};

	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		same_file(a, b, files[i]);
	for (size_t i = 0; i < ARRAY_SIZE(links); i++)
		same_link(a, b, links[i]);
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		same_status(a, b, keys[i]);
	assert_int_equal(getpriority(PRIO_PROCESS, (id_t)a->pid),
			 getpriority(PRIO_PROCESS, (id_t)b->pid));
}

static char *const sleep_argv[] = { "/bin/sleep", "61", NULL };

static int start_order(const struct spawn_order *o, struct proc *ret_target, struct error *err)
{
	_cleanup_close_ int gate = -EBADF;
	int r = spawn_order_ready(o, &ret_target->pid, &ret_target->pidfd, &gate, err);

	if (r < 0)
		return r;
	r = spawn_let_go(o->argv[0], gate, err);
	if (r >= 0)
		r = spawn_started(o->argv[0], gate, NULL, err);
	if (r < 0) {
		spawn_kill(ret_target->pidfd);
		closep(&ret_target->pidfd);
	}
	return r;
}

static struct spawn order_for(const struct proc *source)
{
	return (struct spawn){
		.source = source->pid,
		.source_pidfd = source->pidfd,
		.argv = (char **)sleep_argv,
		.stdio = { -EBADF, -EBADF, -EBADF },
	};
}

static int try_spawn(const struct proc *source, char *const *argv, const struct plan_fd *fds,
		     size_t n_fds, struct proc *ret_target, struct error *err)
{
	__attribute__((cleanup(spawn_order_freep))) struct spawn_order *o = NULL;
	struct spawn s = order_for(source);
	int r;

	s.argv = (char **)argv;
	s.fds = fds;
	s.n_fds = n_fds;
	r = spawn_order_make(&s, &o, err);
	return r < 0 ? r : start_order(o, ret_target, err);
}

static struct proc spawn(const struct proc *source, const struct plan_fd *fds, size_t n_fds)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct proc target = { 0 };
	int r = try_spawn(source, sleep_argv, fds, n_fds, &target, &err);

	if (r < 0)
		fail_msg("%d, %s", r, err.text);
	return target;
}

static int parent_of(pid_t pid)
{
	_cleanup_free_ char *status = slurp(pid, "status");

	return atoi(strstr(status, "\nPPid:") + strlen("\nPPid:"));
}

static void no_child_left(void)
{
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
	assert_int_equal(errno, ECHILD);
}

static void modest(void)
{
	struct rlimit files = { 300, 1000 }, core = { 0, 0 };

	if (chdir("/usr") < 0 || setpriority(PRIO_PROCESS, 0, 3) < 0 ||
	    setrlimit(RLIMIT_NOFILE, &files) < 0 || setrlimit(RLIMIT_CORE, &core) < 0)
		_exit(1);
	umask(0137);
}

static void target_is_what_the_source_is(void **state)
{
	struct proc source = start(modest), target = spawn(&source, NULL, 0);

	same_identity(&source, &target);
	assert_int_equal(getsid(target.pid), target.pid);
	/* systemd is to see it end. */
	assert_int_not_equal(parent_of(target.pid), getpid());
	stop(&target);
	stop(&source);
	no_child_left();
}

/* In a child: say which step cannot be done here. */
#define MUST(call)                     \
	do {                           \
		if ((call) < 0) {      \
			perror(#call); \
			_exit(1);      \
		}                      \
	} while (0)

static void write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	MUST(fd);
	MUST(write(fd, text, strlen(text)));
	close(fd);
}

/* As libvirt starts a QEMU: another user, a mount namespace, few capabilities. */
static void confined(void)
{
	gid_t groups[] = { 107, 36, 4000 };
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	modest();
	write_to("/proc/self/oom_score_adj", "170");
	MUST(unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC));
	MUST(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	MUST(mount("none", "/tmp", "tmpfs", 0, NULL));
	MUST(mkdir("/tmp/there", 0755));
	MUST(chdir("/tmp/there"));
	MUST(sched_setaffinity(0, sizeof(cpus), &cpus));
	MUST(prctl(PR_CAPBSET_DROP, 21));
	MUST(setgroups(3, groups));
	MUST(setresgid(108, 108, 108));
	MUST(setresuid(109, 109, 109));
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static void confined_source_gives_a_confined_target(void **state)
{
	struct proc source, target;

	if (geteuid())
		skip();
	source = start(confined);
	target = spawn(&source, NULL, 0);
	same_identity(&source, &target);
	stop(&target);
	stop(&source);
	no_child_left();
}

static struct spawn_order *order_of(const struct proc *source)
{
	struct spawn s = order_for(source);
	_cleanup_error_ struct error err = ERROR_INIT;
	struct spawn_order *o = NULL;

	if (spawn_order_make(&s, &o, &err) < 0)
		fail_msg("spawn_order_make: %s", err.text);
	return o;
}

static struct proc started(const struct spawn_order *o)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct proc target = { 0 };

	if (start_order(o, &target, &err) < 0)
		fail_msg("%s", err.text);
	return target;
}

static bool ends(struct proc *p)
{
	struct pollfd poll_end = { .fd = p->pidfd, .events = POLLIN };

	return poll(&poll_end, 1, 10000) == 1;
}

/* All of the identity is there before the process is let go, but not the program. */
static void target_that_is_not_let_go_ends(void **state)
{
	struct proc source = start(geteuid() ? modest : confined), target = { 0 };
	struct spawn_order *o = order_of(&source);
	_cleanup_error_ struct error err = ERROR_INIT;
	int gate;

	assert_int_equal(spawn_order_ready(o, &target.pid, &target.pidfd, &gate, &err), 0);
	same_file(&source, &target, "limits");
	same_status(&source, &target, "\nUid:");
	same_status(&source, &target, "\nCapPrm:");
	same_link(&(struct proc){ .pid = getpid() }, &target, "exe");
	close(gate);
	assert_true(ends(&target));
	stop(&target);
	spawn_order_freep(&o);
	stop(&source);
	no_child_left();
}

/* A worker that starts a target and does not come to let it go; or starts a probe. */
__attribute__((noreturn)) static void worker(const struct proc *source, bool probe, int out)
{
	struct spawn s = order_for(source);
	_cleanup_error_ struct error err = ERROR_INIT;
	struct proc target = { 0 };
	int gate, r;

	if (probe)
		r = spawn_probe(&s, &target.pid, &target.pidfd, &err);
	else
		r = spawn_order_ready(order_of(source), &target.pid, &target.pidfd, &gate, &err);
	if (r < 0 || write(out, &target.pid, sizeof(target.pid)) != sizeof(target.pid))
		_exit(1);
	for (;;)
		pause();
}

static void ends_with_its_worker(const struct proc *source, bool probe)
{
	struct proc w, target;
	int out[2];

	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	w.pid = fork();
	if (!w.pid)
		worker(source, probe, out[1]);
	close(out[1]);
	w.pidfd = open_pidfd(w.pid);
	assert_int_equal(read(out[0], &target.pid, sizeof(target.pid)), sizeof(target.pid));
	close(out[0]);
	target.pidfd = open_pidfd(target.pid);
	usleep(50000);
	assert_int_equal(kill(target.pid, 0), 0);
	stop(&w);
	assert_true(ends(&target));
	stop(&target);
}

static void target_that_nobody_can_let_go_ends(void **state)
{
	struct proc source = start(geteuid() ? modest : confined);

	ends_with_its_worker(&source, false);
	stop(&source);
	no_child_left();
}

static void probe_ends_with_its_worker(void **state)
{
	struct proc source = start(geteuid() ? modest : confined);

	ends_with_its_worker(&source, true);
	stop(&source);
	no_child_left();
}

/* What is packed is all that it takes, when the source can no longer be asked. */
static void packed_order_starts_the_same_target_after_the_source_died(void **state)
{
	struct proc source = start(geteuid() ? modest : confined), first, second;
	struct spawn_order *o = order_of(&source), *again = NULL;
	size_t len, n_fds, before = count_fds();
	uint8_t *packed;
	int *fds;

	first = started(o);
	same_identity(&source, &first);
	stop(&source);
	assert_int_equal(spawn_order_pack(o, &packed, &len, &fds, &n_fds), 0);
	assert_int_equal(spawn_order_unpack(packed, len, fds, n_fds, &again), 0);
	free(fds);
	spawn_order_freep(&o);
	second = started(again);
	same_identity(&first, &second);
	same_file(&first, &second, "cmdline");
	for (int i = 0; i < 3; i++) {
		char name[8];

		snprintf(name, sizeof(name), "fd/%d", i);
		same_link(&first, &second, name);
	}
	spawn_order_freep(&again);
	free(packed);
	stop(&first);
	stop(&second);
	assert_true(count_fds() < before);
	no_child_left();
}

static void damaged_order_is_refused_and_leaks_nothing(void **state)
{
	struct proc source = start(modest);
	struct spawn_order *o = order_of(&source), *again = NULL;
	size_t len, n_fds, before;
	uint8_t *packed;
	int *fds;

	assert_int_equal(spawn_order_pack(o, &packed, &len, &fds, &n_fds), 0);
	before = count_fds();
	for (size_t cut = 0; cut < len; cut += 1 + cut / 16)
		assert_true(spawn_order_unpack(packed, cut, fds, n_fds, &again) < 0);
	assert_int_equal(spawn_order_unpack(packed, len, fds, n_fds - 1, &again), -EBADMSG);
	fds[0] = -EBADF;
	assert_int_equal(spawn_order_unpack(packed, len, fds, n_fds, &again), -EBADF);
	assert_null(again);
	assert_int_equal(count_fds(), before);
	free(fds);
	free(packed);
	spawn_order_freep(&o);
	stop(&source);
}

/* A root that has given its capabilities up must not get them back by exec. */
static void humble_root(void)
{
	struct {
		uint32_t version;
		int pid;
	} header = { 0x20080522, 0 };
	uint32_t data[2][3] = { { 1 << 12, 1 << 12, 0 }, { 0 } };

	MUST(syscall(SYS_capset, &header, data));
	/* exec would give them back to the source as well: it stays as it is. */
	close_range(3, ~0U, 0);
	for (;;)
		pause();
}

static void root_without_capabilities_stays_without(void **state)
{
	struct proc source, target;

	if (geteuid())
		skip();
	source = start(humble_root);
	target = spawn(&source, NULL, 0);
	same_status(&source, &target, "\nCapPrm:");
	same_status(&source, &target, "\nCapEff:");
	stop(&target);
	stop(&source);
}

/* A process in a new pid namespace, and a child of it; the pids are told through @out. */
static void pid_namespace(int out)
{
	char *argv[] = { "sleep", "60", NULL };
	pid_t pids[2];

	if (unshare(CLONE_NEWPID) < 0)
		_exit(1);
	pids[0] = fork(); /* process 1 */
	if (pids[0])
		_exit(write(out, pids, sizeof(pids[0])) != sizeof(pids[0]));
	prctl(PR_SET_PDEATHSIG, 0);
	pids[1] = fork();
	if (!pids[1]) {
		execv("/bin/sleep", argv);
		_exit(1);
	}
	pause();
	_exit(0);
}

static pid_t first_child(pid_t pid)
{
	_cleanup_free_ char *text = NULL;
	char name[64];
	pid_t child = 0;

	snprintf(name, sizeof(name), "task/%d/children", (int)pid);
	for (int tries = 0; tries < 500 && !child; tries++) {
		usleep(10000);
		free(text);
		text = slurp(pid, name);
		child = atoi(text);
	}
	assert_true(child > 0);
	return child;
}

static void pid_namespace_is_entered(void **state)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	struct proc source, target, init;
	struct spawn s;
	int ends[2];
	pid_t outer;

	if (geteuid())
		skip();
	/* What the short-lived first child starts is to be ours to reap. */
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	outer = fork();
	if (!outer)
		pid_namespace(ends[1]);
	close(ends[1]);
	assert_int_equal(read(ends[0], &init.pid, sizeof(init.pid)), sizeof(init.pid));
	close(ends[0]);
	assert_int_equal(waitpid(outer, NULL, 0), outer);
	init.pidfd = open_pidfd(init.pid);
	source.pid = first_child(init.pid);
	source.pidfd = open_pidfd(source.pid);

	target = spawn(&source, NULL, 0);
	same_link(&source, &target, "ns/pid");
	stop(&target);
	s = order_for(&source);
	assert_int_equal(spawn_probe(&s, &target.pid, &target.pidfd, &err), 0);
	same_link(&source, &target, "ns/pid");
	stop(&target);

	/* The test itself is where it was. */
	target = start(NULL);
	same_link(&(struct proc){ .pid = getpid() }, &target, "ns/pid");
	stop(&target);

	/* Process 1 of a namespace takes everybody in it along. */
	assert_int_equal(try_spawn(&init, sleep_argv, NULL, 0, &target, &err), -EOPNOTSUPP);
	assert_non_null(strstr(err.text, "pid namespace"));
	closep(&source.pidfd);
	stop(&init);
	no_child_left();
}

static void with_fds(void)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0 || dup2(pair[0], 20) < 0 ||
	    dup2(pair[1], 21) < 0 || dup2(open("/etc/passwd", O_RDONLY), 22) < 0)
		_exit(1);
	close(pair[0]);
	close(pair[1]);
	close(0);
}

static void fds_become_the_wanted_numbers_and_no_others(void **state)
{
	/* Low numbers collide with what the spawning process uses itself. */
	static const struct plan_fd fds[] = { { 20, 3 },  { 21, 4 },  { 22, 5 },   { 22, 6 },
					      { 20, 21 }, { 21, 20 }, { 22, 900 }, { 20, 7 },
					      { 22, 8 },  { 21, 9 },  { 20, 10 },  { 22, 11 },
					      { 21, 12 }, { 20, 13 }, { 22, 14 } };
	struct proc source = start(with_fds), target = spawn(&source, fds, ARRAY_SIZE(fds));
	size_t n = 0;
	char path[64];
	DIR *d;

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		char a[16], b[16];
		_cleanup_free_ char *x = NULL, *y = NULL;

		snprintf(a, sizeof(a), "fd/%d", fds[i].source);
		snprintf(b, sizeof(b), "fd/%d", fds[i].target);
		x = target_of(source.pid, a);
		y = target_of(target.pid, b);
		if (strcmp(x, y))
			fail_msg("%s of the source is %s, %s of the target %s", a, x, b, y);
	}
	same_link(&source, &target, "fd/1");
	same_link(&source, &target, "fd/2");
	snprintf(path, sizeof(path), "/proc/%d/fd", (int)target.pid);
	/* The loader of the program that was just executed may have a library open still. */
	for (int patience = 500; patience && n != ARRAY_SIZE(fds) + 3; patience--) {
		usleep(10000);
		n = 0;
		d = opendir(path);
		assert_non_null(d);
		for (struct dirent *e; (e = readdir(d));)
			n += e->d_name[0] != '.';
		closedir(d);
	}
	assert_int_equal(n, ARRAY_SIZE(fds) + 3);
	stop(&target);
	stop(&source);
}

static void ordinary(void)
{
	MUST(setgroups(0, NULL));
	MUST(setresgid(108, 108, 108));
	MUST(setresuid(109, 109, 109));
}

static void put_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "we");

	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static void file_is(const char *path, const char *text)
{
	char buf[64] = "";
	FILE *f = fopen(path, "re");

	assert_non_null(f);
	(void)!fread(buf, 1, sizeof(buf) - 1, f);
	fclose(f);
	assert_string_equal(buf, text);
}

/* The VM's user put links and names there that only root could follow. */
static void names_are_taken_over_with_the_rights_of_the_vm(void **state)
{
	char root[] = "/var/tmp/test-names-XXXXXX";
	Upgraded__V1__TargetPlan__Rename bad = UPGRADED__V1__TARGET_PLAN__RENAME__INIT;
	Upgraded__V1__TargetPlan__Rename good = UPGRADED__V1__TARGET_PLAN__RENAME__INIT;
	Upgraded__V1__TargetPlan__Rename done = UPGRADED__V1__TARGET_PLAN__RENAME__INIT;
	Upgraded__V1__TargetPlan__Rename *renames[] = { &bad, &good, &done };
	Upgraded__V1__TargetPlan plan = UPGRADED__V1__TARGET_PLAN__INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	char *pidfiles[] = { (char *)"pid.link", (char *)"pid.fifo", (char *)"pid" };
	char text[16];
	struct proc target;
	struct stat st;

	if (geteuid())
		skip();
	assert_non_null(mkdtemp(root));
	assert_int_equal(chmod(root, 0755), 0);
	assert_int_equal(chdir(root), 0);
	assert_int_equal(mkdir("theirs", 0755) | mkdir("ours", 0755), 0);
	put_file("ours/victim", "ours");
	put_file("theirs/socket.new", "new");
	assert_int_equal(symlink("../ours/victim", "theirs/pid.link"), 0);
	assert_int_equal(mkfifo("theirs/pid.fifo", 0666), 0);
	assert_int_equal(lchown("theirs", 109, 108) | lchown("theirs/socket.new", 109, 108), 0);

	/* Relative names are the target's, too. */
	assert_int_equal(chdir("theirs"), 0);
	target = start(ordinary);
	assert_int_equal(chdir("/"), 0);
	bad.from = (char *)"../ours/victim";
	bad.to = (char *)"stolen";
	good.from = (char *)"socket.new";
	good.to = (char *)"socket";
	done.from = (char *)"was-renamed-before";
	done.to = (char *)"it";
	plan.renames = renames;
	plan.n_renames = ARRAY_SIZE(renames);
	plan.pidfiles = pidfiles;
	plan.n_pidfiles = ARRAY_SIZE(pidfiles);
	assert_int_equal(names_take_over(&plan, target.pid, target.pidfd, &err), -EACCES);
	assert_string_equal(err.text, "cannot rename ../ours/victim to stolen: Permission denied");

	assert_int_equal(chdir(root), 0);
	file_is("ours/victim", "ours");
	file_is("theirs/socket", "new");
	snprintf(text, sizeof(text), "%d\n", target.pid);
	file_is("theirs/pid", text);
	assert_int_equal(stat("theirs/pid", &st), 0);
	assert_int_equal(st.st_uid, 109);
	assert_int_equal(access("theirs/stolen", F_OK), -1);
	stop(&target);
	no_child_left();
	assert_int_equal(chdir("/"), 0);
	temp_dir_remove(root);
}

static int not_so(const void *data)
{
	return *(const int *)data;
}

static int killed(const void *data)
{
	(void)data;
	return kill(getpid(), SIGKILL);
}

static void work_that_fails_says_what(void **state)
{
	struct proc source = start(NULL);
	struct error err = ERROR_INIT;
	int code = -EXDEV;

	assert_int_equal(spawn_work(source.pid, source.pidfd, "fly", not_so, &code, &err), code);
	assert_non_null(strstr(err.text, "cannot fly: "));
	error_clear(&err);
	assert_int_equal(spawn_work(source.pid, source.pidfd, "fly", killed, NULL, &err), -ECHILD);
	assert_non_null(strstr(err.text, "was killed"));
	error_clear(&err);
	code = 0;
	assert_int_equal(spawn_work(source.pid, source.pidfd, "fly", not_so, &code, &err), 0);
	stop(&source);
	no_child_left();
}

static void failures_leave_nothing_and_say_what(void **state)
{
	static char *const missing[] = { "/nonexistent/qemu", NULL };
	static char *const no_binary[] = { "/etc/passwd", NULL };
	static const struct plan_fd bad[] = { { 77, 77 } };
	static const struct plan_fd twice[] = { { 1, 9 }, { 2, 9 } };
	struct proc source = start(NULL), target;
	struct error err = ERROR_INIT;

	assert_int_equal(try_spawn(&source, missing, NULL, 0, &target, &err), -ENOENT);
	assert_non_null(strstr(err.text, "/nonexistent/qemu"));
	error_clear(&err);
	assert_int_equal(try_spawn(&source, no_binary, NULL, 0, &target, &err), -EACCES);
	error_clear(&err);
	assert_int_equal(try_spawn(&source, sleep_argv, bad, 1, &target, &err), -EBADF);
	assert_non_null(strstr(err.text, "77"));
	error_clear(&err);
	assert_int_equal(try_spawn(&source, sleep_argv, twice, 2, &target, &err), -EINVAL);
	error_clear(&err);

	assert_int_equal(kill(source.pid, SIGKILL), 0);
	assert_int_equal(poll(&(struct pollfd){ source.pidfd, POLLIN, 0 }, 1, 5000), 1);
	assert_true(try_spawn(&source, sleep_argv, NULL, 0, &target, &err) < 0);
	error_clear(&err);
	waitpid(source.pid, NULL, 0);
	closep(&source.pidfd);
	no_child_left();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(target_is_what_the_source_is),
		cmocka_unit_test(confined_source_gives_a_confined_target),
		cmocka_unit_test(target_that_is_not_let_go_ends),
		cmocka_unit_test(target_that_nobody_can_let_go_ends),
		cmocka_unit_test(probe_ends_with_its_worker),
		cmocka_unit_test(packed_order_starts_the_same_target_after_the_source_died),
		cmocka_unit_test(damaged_order_is_refused_and_leaks_nothing),
		cmocka_unit_test(root_without_capabilities_stays_without),
		cmocka_unit_test(pid_namespace_is_entered),
		cmocka_unit_test(fds_become_the_wanted_numbers_and_no_others),
		cmocka_unit_test(names_are_taken_over_with_the_rights_of_the_vm),
		cmocka_unit_test(work_that_fails_says_what),
		cmocka_unit_test(failures_leave_nothing_and_say_what),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
