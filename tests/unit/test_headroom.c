/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whether a second VMM has room beside a source, as files under a root of our own
 * tell it: a host with one v2 hierarchy, on which there is room. Each test takes some
 * of it away.
 */
#include "headroom.h"

#include "cgroup.h"
#include "cleanup.h"
#include "temp_dir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#define PID  4711
#define UNIT "/sys/fs/cgroup/machine.slice/vmm@web1.service"

#define BLOCKER UPGRADED__V1__SEVERITY__SEVERITY_BLOCKER
#define WARNING UPGRADED__V1__SEVERITY__SEVERITY_WARNING

/* The source has 100 MiB of its own: with the margin a second VMM needs 164. */
#define NEED_MIB 164

struct host {
	char root[TEMP_DIR];
	struct findings f;
};

/* Writes a file with its directories. */
__attribute__((format(printf, 3, 4))) static void put(struct host *h, const char *path,
						      const char *fmt, ...)
{
	char full[512];
	va_list ap;
	FILE *f;

	snprintf(full, sizeof(full), "%s%s", h->root, path);
	for (char *slash = full + strlen(h->root); (slash = strchr(slash + 1, '/'));) {
		*slash = '\0';
		assert_true(!mkdir(full, 0755) || errno == EEXIST);
		*slash = '/';
	}
	f = fopen(full, "we");
	assert_non_null(f);
	va_start(ap, fmt);
	vfprintf(f, fmt, ap);
	va_end(ap);
	fclose(f);
}

static void take(struct host *h, const char *path)
{
	char full[512];

	snprintf(full, sizeof(full), "%s%s", h->root, path);
	assert_int_equal(remove(full), 0);
}

static void put_cgroup(struct host *h, const char *dir, const char *file, const char *text)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	put(h, path, "%s\n", text);
}

static void put_limits(struct host *h, const char *soft, const char *hard)
{
	put(h, "/proc/4711/limits",
	    "Limit                     Soft Limit           Hard Limit           Units     \n"
	    "Max processes             31000                31000                processes \n"
	    "Max open files            %-20s %-20s files     \n",
	    soft, hard);
}

static void put_fds(struct host *h, int n)
{
	for (int i = 0; i < n; i++) {
		char path[64];

		snprintf(path, sizeof(path), "/proc/4711/fd/%d", i);
		put(h, path, "%s", "");
	}
}

static void begin(struct host *h)
{
	*h = (struct host){ 0 };
	temp_dir_make(h->root);
	put(h, "/proc/4711/status",
	    "Name:\tqemu\nVmRSS:\t 9999999 kB\nRssAnon:\t  102400 kB\nRssFile:\t   20 kB\n"
	    "RssShmem:\t 8888888 kB\nThreads:\t12\nSigQ:\t0/1\n");
	put(h, "/proc/4711/cgroup", "0::/machine.slice/vmm@web1.service\n");
	put(h, "/proc/self/mountinfo",
	    "24 30 0:22 / /proc rw - proc proc rw\n"
	    "35 25 0:30 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n");
	put(h, "/proc/meminfo",
	    "MemTotal:       16000000 kB\nMemFree:          100000 kB\n"
	    "MemAvailable:    8000000 kB\nSwapFree:              0 kB\n");
	put(h, "/proc/sys/fs/file-nr", "1000\t0\t9223372036854775807\n");
	put_limits(h, "1024", "524288");
	put_fds(h, 40);
	/* As the root of the hierarchy: it has no limits. */
	put_cgroup(h, "/sys/fs/cgroup", "memory.stat", "active_file 7");
	for (int i = 0; i < 2; i++) {
		const char *dir = i ? UNIT : "/sys/fs/cgroup/machine.slice";

		put_cgroup(h, dir, "memory.max", "max");
		put_cgroup(h, dir, "memory.high", "max");
		put_cgroup(h, dir, "memory.current", "943718400"); /* 900 MiB */
		put_cgroup(h, dir, "memory.swap.max", "max");
		put_cgroup(h, dir, "memory.swap.current", "0");
		put_cgroup(h, dir, "memory.stat",
			   "anon 104857600\nfile 838860800\nshmem 838860800\ninactive_anon 1\n"
			   "inactive_file 0\nactive_file 0\nunevictable 0");
		put_cgroup(h, dir, "pids.max", "max");
		put_cgroup(h, dir, "pids.current", "13");
	}
}

static void end(struct host *h)
{
	findings_clear(&h->f);
	temp_dir_remove(h->root);
}

static void check(struct host *h)
{
	findings_clear(&h->f);
	assert_int_equal(headroom_check(h->root, PID, &h->f), 0);
}

static void expect_nothing(struct host *h, const char *when)
{
	check(h);
	if (h->f.n)
		fail_msg("%s: %s [%s] %s", when, h->f.v[0]->code, h->f.v[0]->subject,
			 h->f.v[0]->text);
}

/* Exactly one finding, and what it says. */
static void expect(struct host *h, int severity, const char *code, const char *subject,
		   const char *text, const char *remedy)
{
	const Finding *f;

	check(h);
	for (size_t i = 0; h->f.n != 1 && i < h->f.n; i++)
		print_message("%s [%s] %s\n", h->f.v[i]->code, h->f.v[i]->subject, h->f.v[i]->text);
	assert_int_equal(h->f.n, 1);
	f = h->f.v[0];
	assert_string_equal(f->code, code);
	assert_int_equal(f->severity, severity);
	assert_string_equal(f->subject, subject);
	if (!strstr(f->text, text))
		fail_msg("it says '%s', not '%s'", f->text, text);
	assert_string_equal(f->remedy, remedy);
}

static void where_there_is_room_nothing_is_said(void **state)
{
	struct host h;

	begin(&h);
	expect_nothing(&h, "a host with room");
	end(&h);
}

static void a_host_short_of_memory_is_a_warning_with_numbers(void **state)
{
	struct host h;

	begin(&h);
	put(&h, "/proc/meminfo", "MemAvailable: %llu kB\nSwapFree: 0 kB\n", NEED_MIB * 1024ULL);
	expect_nothing(&h, "just enough");
	put(&h, "/proc/meminfo", "MemAvailable: %llu kB\nSwapFree: 0 kB\n", NEED_MIB * 1024ULL - 1);
	expect(&h, WARNING, "host.memory", "MemAvailable",
	       "needs about 164 MiB of its own, and the host has 163 MiB",
	       "end what the host can do without, or move another guest away");
	end(&h);
}

static void a_full_cgroup_is_a_blocker_with_a_command(void **state)
{
	struct host h;

	begin(&h);
	put_cgroup(&h, UNIT, "memory.max", "1115684864"); /* 1064 MiB: just enough */
	expect_nothing(&h, "just enough");
	put_cgroup(&h, UNIT, "memory.max", "1115684863");
	expect(&h, BLOCKER, "cgroup.memory", "/machine.slice/vmm@web1.service",
	       "needs about 164 MiB of its own, and memory.max of the cgroup "
	       "/machine.slice/vmm@web1.service leaves 163 MiB",
	       "systemctl set-property --runtime 'vmm@web1.service' MemoryMax=1228M");
	/* More is used than may be: the limit was lowered, and nothing could be taken away. */
	put_cgroup(&h, UNIT, "memory.max", "524288000");
	expect(&h, BLOCKER, "cgroup.memory", "/machine.slice/vmm@web1.service", "leaves 0 MiB",
	       "systemctl set-property --runtime 'vmm@web1.service' MemoryMax=664M");
	end(&h);
}

static void what_the_command_sets_is_enough(void **state)
{
	struct host h;

	begin(&h);
	put_cgroup(&h, UNIT, "memory.max", "944766976"); /* 901 MiB */
	put_cgroup(&h, UNIT, "pids.max", "14");
	check(&h);
	assert_int_equal(h.f.n, 2);
	assert_non_null(strstr(h.f.v[0]->remedy, "MemoryMax=1065M"));
	assert_non_null(strstr(h.f.v[1]->remedy, "TasksMax=26"));
	put_cgroup(&h, UNIT, "memory.max", "1116733440");
	put_cgroup(&h, UNIT, "pids.max", "26");
	expect_nothing(&h, "after the remedies");
	end(&h);
}

static void a_full_slice_above_counts_as_well(void **state)
{
	struct host h;

	begin(&h);
	put_cgroup(&h, "/sys/fs/cgroup/machine.slice", "memory.max", "948961280"); /* 905 MiB */
	expect(&h, BLOCKER, "cgroup.memory", "/machine.slice", "leaves 5 MiB",
	       "systemctl set-property --runtime 'machine.slice' MemoryMax=1069M");
	put_cgroup(&h, UNIT, "memory.max", "948961280");
	check(&h);
	assert_int_equal(h.f.n, 2);
	assert_string_equal(h.f.v[0]->subject, "/machine.slice/vmm@web1.service");
	assert_string_equal(h.f.v[1]->subject, "/machine.slice");
	end(&h);
}

static void the_root_of_a_container_counts_as_well(void **state)
{
	struct host h;

	begin(&h);
	put(&h, "/proc/self/mountinfo",
	    "35 25 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n");
	put(&h, "/proc/4711/cgroup", "0::/\n");
	put_cgroup(&h, "/sys/fs/cgroup", "pids.max", "20");
	put_cgroup(&h, "/sys/fs/cgroup", "pids.current", "19");
	expect(&h, BLOCKER, "cgroup.pids", "/", "leaves 1", "echo 32 > '/sys/fs/cgroup/pids.max'");
	end(&h);
}

static void file_cache_and_swap_are_room(void **state)
{
	struct host h;

	begin(&h);
	put_cgroup(&h, UNIT, "memory.max", "943718400");
	put_cgroup(&h, UNIT, "memory.stat",
		   "anon 5\nshmem 838860800\ninactive_anon 999999999\nactive_anon 999999999\n"
		   "inactive_file 104857600\nactive_file 67108864");
	expect_nothing(&h, "164 MiB of files");
	put_cgroup(&h, UNIT, "memory.stat", "inactive_file 104857600\nactive_file 67108863");
	check(&h);
	assert_int_equal(h.f.n, 1);
	/* Swap: as much as the host has, and as the cgroup may take. */
	put(&h, "/proc/meminfo", "MemAvailable: 8000000 kB\nSwapFree: 1 kB\n");
	expect_nothing(&h, "and a little swap");
	put_cgroup(&h, UNIT, "memory.swap.max", "4096");
	expect_nothing(&h, "of which there may be a little");
	put_cgroup(&h, UNIT, "memory.swap.current", "4096");
	check(&h);
	assert_int_equal(h.f.n, 1);
	end(&h);
}

static void a_throttled_cgroup_is_a_warning(void **state)
{
	struct host h;

	begin(&h);
	put_cgroup(&h, UNIT, "memory.high", "943718401");
	expect(&h, WARNING, "cgroup.memory-high", "/machine.slice/vmm@web1.service",
	       "memory.high of the cgroup /machine.slice/vmm@web1.service leaves 0 MiB",
	       "systemctl set-property --runtime 'vmm@web1.service' MemoryHigh=1065M");
	end(&h);
}

static void too_few_tasks_are_a_blocker(void **state)
{
	struct host h;

	begin(&h);
	put_cgroup(&h, UNIT, "pids.max", "25");
	expect_nothing(&h, "just enough");
	put_cgroup(&h, UNIT, "pids.max", "24");
	expect(&h, BLOCKER, "cgroup.pids", "/machine.slice/vmm@web1.service",
	       "about 12 threads, and pids.max of the cgroup /machine.slice/vmm@web1.service "
	       "leaves 11",
	       "systemctl set-property --runtime 'vmm@web1.service' TasksMax=36");
	end(&h);
}

/* systemd knows of no cgroup below those that it has given away, and a command is typed by root. */
static void the_command_fits_the_cgroup(void **state)
{
	static const struct {
		const char *cgroup, *remedy;
	} table[] = {
		{ "/machine.slice/machine-qemu\\x2d1\\x2dweb.scope",
		  "systemctl set-property --runtime 'machine-qemu\\x2d1\\x2dweb.scope' "
		  "TasksMax=13" },
		{ "/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/emulator",
		  "echo 13 > "
		  "'/sys/fs/cgroup/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/"
		  "emulator/pids.max'" },
		{ "/user.slice/user-7.slice/user@7.service/app.slice/vm.service",
		  "echo 13 > '/sys/fs/cgroup/user.slice/user-7.slice/user@7.service/app.slice/"
		  "vm.service/pids.max'" },
		{ "/machine.slice/box.scope/payload/system.slice",
		  "echo 13 > "
		  "'/sys/fs/cgroup/machine.slice/box.scope/payload/system.slice/pids.max'" },
		{ "/mine", "echo 13 > '/sys/fs/cgroup/mine/pids.max'" },
		{ "/it's;reboot", "set its pids.max to 13" },
		{ "/a b.service", "set its pids.max to 13" },
	};
	struct host h;

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		char dir[256];

		begin(&h);
		put(&h, "/proc/4711/cgroup", "0::%s\n", table[i].cgroup);
		snprintf(dir, sizeof(dir), "/sys/fs/cgroup%s", table[i].cgroup);
		put_cgroup(&h, dir, "pids.max", "1");
		put_cgroup(&h, dir, "pids.current", "1");
		expect(&h, BLOCKER, "cgroup.pids", table[i].cgroup, "leaves 0", table[i].remedy);
		end(&h);
	}
}

static void too_few_descriptors_are_a_blocker(void **state)
{
	struct host h;

	begin(&h);
	put_limits(&h, "56", "4096");
	expect_nothing(&h, "just enough");
	put_limits(&h, "55", "4096");
	expect(&h, BLOCKER, "source.descriptors", "RLIMIT_NOFILE",
	       "has 40 descriptors open and may have 55",
	       "prlimit --pid 4711 --nofile=112:4096 (the target gets the source's limits)");
	put_limits(&h, "55", "60");
	expect(&h, BLOCKER, "source.descriptors", "RLIMIT_NOFILE", "40",
	       "prlimit --pid 4711 --nofile=112:112 (the target gets the source's limits)");
	put_limits(&h, "unlimited", "unlimited");
	expect_nothing(&h, "no limit");
	end(&h);
}

static void a_host_short_of_descriptors_is_a_warning(void **state)
{
	struct host h;

	begin(&h);
	put(&h, "/proc/sys/fs/file-nr", "1000\t0\t1056\n");
	expect_nothing(&h, "just enough");
	put(&h, "/proc/sys/fs/file-nr", "1000\t0\t1055\n");
	expect(&h, WARNING, "host.descriptors", "fs.file-max",
	       "opens about 56 files, and the host can have 55 more", "sysctl fs.file-max=1112");
	put(&h, "/proc/sys/fs/file-nr", "1200\t0\t1055\n");
	expect(&h, WARNING, "host.descriptors", "fs.file-max", "can have 0 more",
	       "sysctl fs.file-max=1312");
	end(&h);
}

/* Everything is short, and then one file after the other is not there. */
static void what_is_not_known_is_not_said(void **state)
{
	static const struct {
		const char *path;
		size_t silenced;
	} files[] = {
		{ "/proc/4711/status", 4 },	{ "/proc/4711/cgroup", 3 },
		{ "/proc/4711/limits", 1 },	{ "/proc/self/mountinfo", 3 },
		{ "/proc/sys/fs/file-nr", 1 },	{ "/proc/meminfo", 3 },
		{ UNIT "/memory.max", 1 },	{ UNIT "/memory.high", 1 },
		{ UNIT "/memory.current", 2 },	{ UNIT "/memory.stat", 2 },
		{ UNIT "/memory.swap.max", 0 }, { UNIT "/memory.swap.current", 0 },
		{ UNIT "/pids.max", 1 },	{ UNIT "/pids.current", 1 },
		{ "/proc/4711/fd/39", 0 },
	};
	struct host h;

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		begin(&h);
		put(&h, "/proc/meminfo", "MemAvailable: 1 kB\nSwapFree: 0 kB\n");
		put(&h, "/proc/sys/fs/file-nr", "1000 0 1001\n");
		put_limits(&h, "41", "41");
		put_cgroup(&h, UNIT, "memory.max", "943718400");
		put_cgroup(&h, UNIT, "memory.high", "943718400");
		put_cgroup(&h, UNIT, "pids.max", "13");
		check(&h);
		assert_int_equal(h.f.n, 6);
		take(&h, files[i].path);
		check(&h);
		if (h.f.n != 6 - files[i].silenced)
			fail_msg("without %s there are %zu findings", files[i].path, h.f.n);
		end(&h);
	}
}

static void a_host_that_shows_nothing_has_no_findings(void **state)
{
	struct host h = { 0 };

	temp_dir_make(h.root);
	expect_nothing(&h, "nothing to be read");
	put(&h, "/proc/4711/status", "nonsense");
	put(&h, "/proc/4711/cgroup", "nonsense");
	put(&h, "/proc/4711/limits", "nonsense\nMax open files");
	put(&h, "/proc/self/mountinfo", "nonsense\n1 2 - cgroup2");
	put(&h, "/proc/meminfo", "MemAvailable:");
	put(&h, "/proc/sys/fs/file-nr", "nonsense");
	put(&h, "/proc/4711/fd/0", "%s", "");
	expect_nothing(&h, "nothing that makes sense");
	end(&h);
}

/* It is the guest's, and a blocker of its own. */
static void private_guest_memory_is_not_taken_for_the_vmms(void **state)
{
	struct host h;

	begin(&h);
	put(&h, "/proc/meminfo", "MemAvailable: 1 kB\nSwapFree: 0 kB\n");
	put_cgroup(&h, UNIT, "memory.max", "1");
	assert_int_equal(findings_add(&h.f, BLOCKER, "source.ram-private", "pc.ram", NULL, "x"), 0);
	assert_int_equal(headroom_check(h.root, PID, &h.f), 0);
	assert_int_equal(h.f.n, 1);
	end(&h);
}

/* Its limits are not looked at. */
static void v1_hierarchies_are_left_alone(void **state)
{
	struct host h;

	begin(&h);
	put(&h, "/proc/4711/cgroup", "4:memory:/vm\n1:name=systemd:/vm\n0::/vm\n");
	put(&h, "/proc/self/mountinfo",
	    "35 25 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
	    "36 25 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
	put_cgroup(&h, "/sys/fs/cgroup/memory/vm", "memory.limit_in_bytes", "1");
	put_cgroup(&h, "/sys/fs/cgroup/memory/vm", "memory.usage_in_bytes", "1");
	put_cgroup(&h, "/sys/fs/cgroup/memory/vm", "pids.max", "1");
	put_cgroup(&h, "/sys/fs/cgroup/memory/vm", "pids.current", "1");
	expect_nothing(&h, "limits of v1");
	put_cgroup(&h, "/sys/fs/cgroup/unified/vm", "pids.max", "1");
	put_cgroup(&h, "/sys/fs/cgroup/unified/vm", "pids.current", "1");
	expect(&h, BLOCKER, "cgroup.pids", "/vm", "leaves 0",
	       "echo 13 > '/sys/fs/cgroup/unified/vm/pids.max'");
	end(&h);
}

static void the_cgroup_is_found_where_it_is_mounted(void **state)
{
	static const struct {
		const char *cgroup, *mountinfo, *dir;
		size_t root_len;
	} table[] = {
		{ "0::/a/b\n", "1 2 0:3 / /c rw - cgroup2 none rw\n", "/c/a/b", 2 },
		{ "0::/\n", "1 2 0:3 / /c rw - cgroup2 none rw\n", "/c", 2 },
		{ "3:cpu:/x\n0::/a/b\n", "1 2 0:3 /a /c\\040d rw - cgroup2 none rw\n", "/c d/b",
		  4 },
		{ "0::/a/b\n", "1 2 0:3 /x /c rw - cgroup2 none rw\n", NULL, 0 },
		{ "0::/\n", "1 2 0:3 /x /c rw - cgroup2 none rw\n", NULL, 0 },
		{ "3:cpu:/x\n", "1 2 0:3 / /c rw - cgroup2 none rw\n", NULL, 0 },
		{ "0::/a\n", "1 2 0:3 / /c rw - cgroup none rw,cpu\n", NULL, 0 },
		{ "", "", NULL, 0 },
	};

	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		_cleanup_free_ char *dir = NULL;
		size_t root_len = 0;
		int r = cgroup_find_v2(table[i].cgroup, table[i].mountinfo, &dir, &root_len);

		assert_int_equal(r, table[i].dir ? 0 : -ENOENT);
		if (!table[i].dir)
			continue;
		assert_string_equal(dir, table[i].dir);
		assert_int_equal(root_len, table[i].root_len);
	}
}

static void this_host_can_be_asked(void **state)
{
	struct findings f = FINDINGS_INIT;

	assert_int_equal(headroom_check("", getpid(), &f), 0);
	for (size_t i = 0; i < f.n; i++)
		print_message("%s [%s] %s (%s)\n", f.v[i]->code, f.v[i]->subject, f.v[i]->text,
			      f.v[i]->remedy);
	findings_clear(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(where_there_is_room_nothing_is_said),
		cmocka_unit_test(a_host_short_of_memory_is_a_warning_with_numbers),
		cmocka_unit_test(a_full_cgroup_is_a_blocker_with_a_command),
		cmocka_unit_test(what_the_command_sets_is_enough),
		cmocka_unit_test(a_full_slice_above_counts_as_well),
		cmocka_unit_test(the_root_of_a_container_counts_as_well),
		cmocka_unit_test(file_cache_and_swap_are_room),
		cmocka_unit_test(a_throttled_cgroup_is_a_warning),
		cmocka_unit_test(too_few_tasks_are_a_blocker),
		cmocka_unit_test(the_command_fits_the_cgroup),
		cmocka_unit_test(too_few_descriptors_are_a_blocker),
		cmocka_unit_test(a_host_short_of_descriptors_is_a_warning),
		cmocka_unit_test(what_is_not_known_is_not_said),
		cmocka_unit_test(a_host_that_shows_nothing_has_no_findings),
		cmocka_unit_test(private_guest_memory_is_not_taken_for_the_vmms),
		cmocka_unit_test(v1_hierarchies_are_left_alone),
		cmocka_unit_test(the_cgroup_is_found_where_it_is_mounted),
		cmocka_unit_test(this_host_can_be_asked),
	};

	return cmocka_run_group_tests_name("headroom", tests, NULL, NULL);
}
