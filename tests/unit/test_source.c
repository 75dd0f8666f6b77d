/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is read from a real source and asked of real targets. The QEMU is the
 * installed one, with TCG and without a guest; where it is older than 10.0 its
 * being too old is one of the findings.
 */
#include "probe.h"
#include "source.h"
#include "temp_dir.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cmocka.h>

#define QEMU "/usr/bin/qemu-system-x86_64"

struct vm {
	char dir[TEMP_DIR];
	char qmp[48];
	pid_t pid;
	int pidfd;
	struct waiter w;
	struct qmp *q;
	struct source *s;
	struct findings f;
	struct error err;
};

static void connect_monitor(struct vm *vm)
{
	int r;

	do {
		error_clear(&vm->err);
		r = qmp_connect(vm->qmp, "the source", &vm->w, &vm->q, &vm->err);
		if (r == -ENOENT || r == -ECONNREFUSED)
			assert_int_equal(wait_sleep(&vm->w, 20000, NULL), 0);
	} while (r == -ENOENT || r == -ECONNREFUSED);
	if (r < 0)
		fail_msg("qmp_connect: %d, %s", r, vm->err.text);
}

/* @ram: the options of a private or a shared memory. @more: more words of the line. */
static void start_with(struct vm *vm, const char *cpu, const char *share, char **more)
{
	char qmp[96], ram[96];

	*vm = (struct vm){ .w = WAITER_INIT };
	temp_dir_make(vm->dir);
	snprintf(vm->qmp, sizeof(vm->qmp), "%s/qmp", vm->dir);
	snprintf(qmp, sizeof(qmp), "unix:%s,server=on,wait=off", vm->qmp);
	snprintf(ram, sizeof(ram), "memory-backend-memfd,id=ram0,size=32M,share=%s", share);
	vm->pid = fork();
	if (!vm->pid) {
		char *argv[] = { (char *)QEMU,	     (char *)"-nodefaults",
				 (char *)"-display", (char *)"none",
				 (char *)"-machine", (char *)"q35,accel=tcg,memory-backend=ram0",
				 (char *)"-object",  ram,
				 (char *)"-m",	     (char *)"32",
				 (char *)"-cpu",     (char *)cpu,
				 (char *)"-device",  (char *)"virtio-balloon-pci",
				 (char *)"-add-fd",  (char *)"fd=40,set=7,opaque=null",
				 (char *)"-qmp",     qmp,
				 [64] = NULL };

		for (size_t i = 0, n = 18; more && more[i]; i++)
			argv[n++] = more[i];

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(open("/dev/null", O_RDWR | O_CLOEXEC), 40);
		execv(QEMU, argv);
		_exit(1);
	}
	vm->pidfd = (int)syscall(SYS_pidfd_open, vm->pid, 0);
	vm->w.source = vm->pidfd;
	vm->w.what = "a test";
	vm->w.deadline_us = now_us() + 60000000;
	connect_monitor(vm);
	if (source_read(vm->pid, vm->pidfd, vm->q, &vm->s, &vm->err) < 0)
		fail_msg("source_read: %s", vm->err.text);
}

static void start(struct vm *vm, const char *cpu, const char *share)
{
	start_with(vm, cpu, share, NULL);
}

static void stop(struct vm *vm)
{
	source_freep(&vm->s);
	qmp_freep(&vm->q);
	findings_clear(&vm->f);
	error_clear(&vm->err);
	kill(vm->pid, SIGKILL);
	assert_int_equal(waitpid(vm->pid, NULL, 0), vm->pid);
	closep(&vm->pidfd);
	temp_dir_remove(vm->dir);
	/* Neither this VM nor a probe is left. */
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

static const Finding *find(const struct vm *vm, const char *code, const char *subject)
{
	for (size_t i = 0; i < vm->f.n; i++)
		if (!strcmp(vm->f.v[i]->code, code) &&
		    (!subject || !strcmp(vm->f.v[i]->subject, subject)))
			return vm->f.v[i];
	return NULL;
}

static void expect(const struct vm *vm, const char *code, const char *subject, const char *word)
{
	const Finding *found = find(vm, code, subject);

	for (size_t i = 0; !found && i < vm->f.n; i++)
		print_message("%s [%s] %s\n", vm->f.v[i]->code, vm->f.v[i]->subject,
			      vm->f.v[i]->text);
	if (!found)
		fail_msg("no finding %s", code);
	if (!strstr(found->text, word))
		fail_msg("%s says '%s', not '%s'", code, found->text, word);
	assert_true(found->severity != UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER || *found->remedy);
}

static void probe(struct vm *vm, const char *binary)
{
	_cleanup_free_ char *version = NULL;

	if (probe_target(binary, vm->s, vm->pidfd, &vm->w, &vm->f, &version, &vm->err) < 0)
		fail_msg("probe_target: %s", vm->err.text);
}

static void source_is_read_from_the_process_and_its_monitor(void **state)
{
	bool listens = false, cpu = false;
	struct vm vm;

	start(&vm, "qemu64", "on");
	assert_string_equal(vm.s->binary, QEMU);
	assert_false(vm.s->outdated);
	assert_string_equal(vm.s->arch, "x86_64");
	assert_string_equal(vm.s->accel, "tcg");
	assert_string_equal(vm.s->status, "running");
	assert_true(vm.s->running);
	assert_int_equal(vm.s->memory, 32 << 20);
	/* "q35" was asked for. */
	assert_int_equal(strncmp(vm.s->machine, "pc-q35-", 7), 0);
	assert_null(strstr(vm.s->machine, "-machine"));
	assert_string_equal(vm.s->devices[0], "virtio-balloon-device");
	assert_string_equal(vm.s->devices[1], "virtio-balloon-pci");
	assert_null(vm.s->devices[2]);
	for (char **d = vm.s->onboard; *d; d++)
		cpu |= !strcmp(*d, "qemu64-x86_64-cpu");
	assert_true(cpu);
	assert_null(vm.s->cpu_model);
	assert_int_equal(vm.s->n_fdsets, 1);
	assert_int_equal(vm.s->fdsets[0].set, 7);
	assert_string_equal(vm.s->fdsets[0].opaque, "null");
	for (size_t i = 0; i < vm.s->n_fds; i++)
		listens |= vm.s->fds[i].listen && !strncmp(vm.s->fds[i].listen, "unix:", 5) &&
			   !strcmp(vm.s->fds[i].listen + 5, vm.qmp) && vm.s->fds[i].cloexec;
	assert_true(listens);
	stop(&vm);
}

static void check_lists_every_blocker_of_the_source(void **state)
{
	struct vm vm;

	start(&vm, "qemu64", "off");
	assert_int_equal(source_check(vm.s, vm.q, &vm.f, &vm.err), 0);
	expect(&vm, "source.ram-private", "ram0", "private to its process");
	assert_null(find(&vm, "source.status", NULL));
	findings_clear(&vm.f);
	free(vm.s->status);
	vm.s->status = strdup("postmigrate");
	assert_int_equal(source_check(vm.s, vm.q, &vm.f, &vm.err), 0);
	expect(&vm, "source.status", "postmigrate", "migrated away");
	expect(&vm, "source.ram-private", "ram0", "private to its process");
	stop(&vm);
}

static void tell(struct vm *vm, const char *command, const char *args)
{
	if (qmp_execute(vm->q, command, json_tokener_parse(args), NULL, &vm->err) < 0)
		fail_msg("%s: %s", command, vm->err.text);
}

static void image(const char *name)
{
	int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	assert_true(fd >= 0 && !ftruncate(fd, 1 << 20));
	close(fd);
}

static void what_was_changed_by_qmp_is_a_blocker(void **state)
{
	char *more[] = {
		"-drive",    "file=a.img,if=none,id=old,format=raw",
		"-device",   "virtio-blk-pci,drive=old,id=vold",
		"-drive",    "if=virtio,format=raw,file=file:b,,c.img,read-only=on",
		"-blockdev", "driver=file,filename=d.img,node-name=d-file",
		"-blockdev", "{\"driver\": \"raw\", \"node-name\": \"d\", \"file\": \"d-file\"}",
		"-device",   "{\"driver\": \"virtio-blk-pci\", \"drive\": \"d\", \"id\": \"vd\"}",
		"-drive",    "driver=raw,file.driver=file,file.filename=e.img,if=none,id=e",
		"-drive",    "file=e2.img,format=raw,offset=512,if=none,id=e2",
		"-cdrom",    "f.iso",
		"-drive",    "if=floppy",
		"-device",   "virtio-rng-pci",
		"-device",   "pcie-root-port,id=rp",
		NULL,
	};
	char dir[TEMP_DIR];
	struct vm vm;

	temp_dir_make(dir);
	assert_int_equal(chdir(dir), 0);
	for (const char **n = (const char *[]){ "a.img", "b,c.img", "d.img", "e.img", "e2.img",
						"f.iso", "g.iso", NULL };
	     *n; n++)
		image(*n);
	start_with(&vm, "qemu64", "on", more);
	assert_int_equal(source_check_drift(vm.s, vm.q, &vm.f, &vm.err), 0);
	for (size_t i = 0; i < vm.f.n; i++)
		fail_msg("%s: %s", vm.f.v[i]->subject, vm.f.v[i]->text);

	tell(&vm, "device_add",
	     "{\"driver\": \"virtio-rng-pci\", \"id\": \"late\", \"bus\": \"rp\"}");
	tell(&vm, "blockdev-change-medium",
	     "{\"device\": \"ide2-cd0\", \"filename\": \"g.iso\", \"format\": \"raw\"}");
	tell(&vm, "blockdev-snapshot-sync",
	     "{\"device\": \"old\", \"snapshot-file\": \"over.qcow2\", \"format\": \"qcow2\"}");
	tell(&vm, "blockdev-snapshot-sync",
	     "{\"node-name\": \"d\", \"snapshot-file\": \"over2.qcow2\", \"format\": \"qcow2\","
	     " \"snapshot-node-name\": \"d2\"}");
	assert_int_equal(source_check(vm.s, vm.q, &vm.f, &vm.err), 0);
	expect(&vm, "source.device", "late", "was plugged in");
	expect(&vm, "source.disk", "old", "over.qcow2");
	expect(&vm, "source.disk", "ide2-cd0", "g.iso");
	expect(&vm, "source.disk", "/machine/peripheral/vd/virtio-backend", "over2.qcow2");
	stop(&vm);
	assert_int_equal(chdir("/"), 0);
	temp_dir_remove(dir);
}

static void an_empty_drive_is_not_its_image(void **state)
{
	char *more[] = { "-drive",
			 "file=/etc/hostname,if=none,media=cdrom,id=cd,format=raw,read-only=on",
			 "-device", "ide-cd,drive=cd", NULL };
	struct vm vm;

	start_with(&vm, "qemu64", "on", more);
	assert_int_equal(source_check_drift(vm.s, vm.q, &vm.f, &vm.err), 0);
	assert_int_equal(vm.f.n, 0);
	tell(&vm, "eject", "{\"device\": \"cd\", \"force\": true}");
	assert_int_equal(source_check_drift(vm.s, vm.q, &vm.f, &vm.err), 0);
	expect(&vm, "source.disk", "/etc/hostname", "No disk uses");
	stop(&vm);
}

static void shared_memory_is_no_blocker(void **state)
{
	struct vm vm;

	start(&vm, "qemu64", "on");
	assert_int_equal(source_check(vm.s, vm.q, &vm.f, &vm.err), 0);
	assert_null(find(&vm, "source.ram-private", NULL));
	stop(&vm);
}

static void the_same_binary_can_do_what_the_source_does(void **state)
{
	struct vm vm;

	start(&vm, "max,-avx2", "on");
	assert_string_equal(vm.s->cpu_model, "max");
	probe(&vm, QEMU);
	for (size_t i = 0; i < vm.f.n; i++)
		if (vm.f.v[i]->severity == UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER &&
		    strcmp(vm.f.v[i]->code, "target.too-old"))
			fail_msg("%s: %s", vm.f.v[i]->code, vm.f.v[i]->text);
	/* The guest's CPU stays without what it was started without. */
	assert_non_null(vm.s->cpu);
	if (strncmp(vm.s->cpu, "max,", 4) || !strstr(vm.s->cpu, ",avx2=off"))
		fail_msg("-cpu %s", vm.s->cpu);
	stop(&vm);
}

static void what_the_target_lacks_is_listed_whole(void **state)
{
	struct vm vm;

	start(&vm, "max", "on");
	free(vm.s->machine);
	vm.s->machine = strdup("pc-q35-99.0");
	free(vm.s->devices[0]);
	vm.s->devices[0] = strdup("from-the-future-pci");
	json_object_object_add(vm.s->cpu_props, "from-the-future", json_object_new_boolean(1));
	json_object_object_add(vm.s->cpu_names, "from-the-future", json_object_new_boolean(1));
	probe(&vm, QEMU);
	expect(&vm, "target.machine-type", "pc-q35-99.0", "it knows pc-q35-");
	expect(&vm, "target.device", "from-the-future-pci", "lacks");
	expect(&vm, "target.cpu", "max", "from-the-future");
	stop(&vm);
}

/* The installed one in the role of the target; it makes rings one way or the other. */
static void rings_that_the_target_does_not_make_are_a_blocker(void **state)
{
	const Finding *found;
	int64_t size;
	struct vm vm;

	start(&vm, "qemu64", "on");
	/* Its balloon was not told to be larger than others. */
	assert_int_equal(virtio_rings_probed(vm.q, &size, &vm.err), 0);
	assert_int_equal(vm.s->rings.n, size > 128);
	probe(&vm, QEMU);
	assert_null(find(&vm, "target.virtio-ring", NULL));

	virtio_rings_clear(&vm.s->rings);
	vm.s->rings = (struct virtio_rings){
		.device = strdup("virtio-rng-device 'rng0'"),
		.size = 1024,
		.own = 8,
		.n = 3,
	};
	findings_clear(&vm.f);
	probe(&vm, QEMU);
	found = find(&vm, "target.virtio-ring", NULL);
	if (size > 128) {
		assert_null(found);
	} else {
		expect(&vm, "target.virtio-ring", "virtio-rng-device 'rng0'",
		       "queue 0 of the guest's virtio-rng-device 'rng0' a ring of 1024 entries");
		expect(&vm, "target.virtio-ring", NULL, "would make 8");
		expect(&vm, "target.virtio-ring", NULL, "with 2 more of its devices");
		assert_int_equal(found->severity, UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER);
	}
	/* A ring that it can take. */
	vm.s->rings.size = 8;
	vm.s->rings.own = 4;
	findings_clear(&vm.f);
	probe(&vm, QEMU);
	assert_null(find(&vm, "target.virtio-ring", NULL));
	/* Not to be found out: said, but no obstacle. */
	free(vm.s->devices[1]);
	vm.s->devices[1] = strdup("virtio-blk-ccw");
	findings_clear(&vm.f);
	probe(&vm, QEMU);
	expect(&vm, "target.virtio-ring", NULL, "could not be found out");
	assert_int_equal(find(&vm, "target.virtio-ring", NULL)->severity,
			 UPGRADED__V1__SEVERITY__SEVERITY_WARNING);
	stop(&vm);
}

static void a_target_older_than_the_source_is_a_blocker(void **state)
{
	static const struct {
		const char *version;
		bool older;
	} cases[] = {
		{ "99.0.0", true },
		{ "1.0.0", false },
		{ "unknown", false },
		{ NULL, false },
	};
	struct vm vm;

	start(&vm, "qemu64", "on");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		if (cases[i].version) {
			free(vm.s->version);
			vm.s->version = strdup(cases[i].version);
		} else {
			char *dot = strrchr(qmp_version(vm.q), '.');

			/* A bug fix release less or more is no difference. */
			free(vm.s->version);
			assert_true(asprintf(&vm.s->version, "%.*s.999",
					     (int)(dot - qmp_version(vm.q)),
					     qmp_version(vm.q)) > 0);
		}
		findings_clear(&vm.f);
		probe(&vm, QEMU);
		if (cases[i].older)
			expect(&vm, "target.older", QEMU, "is older than the source, QEMU 99.0.0");
		else if (find(&vm, "target.older", NULL))
			fail_msg("older than %s?", vm.s->version);
	}
	stop(&vm);
}

static void script(struct vm *vm, const char *name, const char *text, char *path, size_t size)
{
	int fd;

	snprintf(path, size, "%s/%s", vm->dir, name);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static void wrong_targets_are_each_named(void **state)
{
	char dies[64], talks[64], silent[64], noise[64], *version = NULL;
	uint64_t deadline;
	struct vm vm;

	start(&vm, "qemu64", "on");
	deadline = vm.w.deadline_us;
	script(&vm, "dies", "#!/bin/sh\necho 'no such luck' >&2\nexit 3\n", dies, sizeof(dies));
	script(&vm, "talks", "#!/bin/sh\necho hello\nread line\n", talks, sizeof(talks));
	script(&vm, "silent", "#!/bin/sh\nexec sleep 60\n", silent, sizeof(silent));
	script(&vm, "noise", "\177ELF, but only in name", noise, sizeof(noise));
	probe(&vm, "/nonexistent/qemu");
	probe(&vm, "/etc/passwd");
	probe(&vm, "relative");
	probe(&vm, dies);
	probe(&vm, talks);
	probe(&vm, noise);
	/* That there was no time says nothing about the binary. */
	vm.w.deadline_us = now_us() + 300000;
	assert_int_equal(probe_target(silent, vm.s, vm.pidfd, &vm.w, &vm.f, &version, &vm.err),
			 -ETIMEDOUT);
	assert_non_null(strstr(vm.err.text, "time ran out while"));
	error_clear(&vm.err);
	vm.w.deadline_us = deadline;
	expect(&vm, "target.missing", "/nonexistent/qemu", "/nonexistent/qemu");
	expect(&vm, "target.missing", "relative", "absolute");
	expect(&vm, "target.not-executable", "/etc/passwd", "executed");
	expect(&vm, "target.dies", dies, "no such luck");
	expect(&vm, "target.not-qemu", talks, "does not speak QMP");
	expect(&vm, "target.not-a-program", noise, "no program");
	assert_null(find(&vm, "target.silent", NULL));
	unlink(dies);
	unlink(talks);
	unlink(silent);
	unlink(noise);
	stop(&vm);
}

static void qmp_socket_is_found_in_a_command_line(void **state)
{
	static const struct {
		const char *argv[8];
		const char *path;
	} cases[] = {
		{ { "q", "-qmp", "unix:/run/a,server=on,wait=off" }, "/run/a" },
		{ { "q", "--qmp", "unix:/run/a,,b" }, "/run/a,b" },
		{ { "q", "-qmp", "stdio" }, NULL },
		{ { "q", "-qmp", "tcp:localhost:4444,server=on" }, NULL },
		{ { "q", "-chardev", "socket,id=x,path=/run/x,server=on", "-mon",
		    "chardev=x,mode=control" },
		  "/run/x" },
		{ { "q", "-chardev", "socket,path=/run/y,id=y", "-mon", "y,mode=control" },
		  "/run/y" },
		{ { "q", "-chardev", "socket,id=x,path=/run/x", "-mon", "chardev=x,mode=readline" },
		  NULL },
		{ { "q", "-chardev", "socket,id=x,fd=5", "-mon", "chardev=x,mode=control" }, NULL },
		{ { "q", "-name", "qmp", "-qmp" }, NULL },
		{ { "q" }, NULL },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_free_ char *path = source_find_qmp((char **)cases[i].argv);

		if (!path != !cases[i].path || (path && strcmp(path, cases[i].path)))
			fail_msg("case %zu: %s, expected %s", i, path, cases[i].path);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(source_is_read_from_the_process_and_its_monitor),
		cmocka_unit_test(check_lists_every_blocker_of_the_source),
		cmocka_unit_test(what_was_changed_by_qmp_is_a_blocker),
		cmocka_unit_test(an_empty_drive_is_not_its_image),
		cmocka_unit_test(shared_memory_is_no_blocker),
		cmocka_unit_test(the_same_binary_can_do_what_the_source_does),
		cmocka_unit_test(what_the_target_lacks_is_listed_whole),
		cmocka_unit_test(rings_that_the_target_does_not_make_are_a_blocker),
		cmocka_unit_test(a_target_older_than_the_source_is_a_blocker),
		cmocka_unit_test(wrong_targets_are_each_named),
		cmocka_unit_test(qmp_socket_is_found_in_a_command_line),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
