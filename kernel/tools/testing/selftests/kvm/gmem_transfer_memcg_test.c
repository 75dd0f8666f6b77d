// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of which memory cgroup pays for a guest's memory, and for the page
 * tables that map it, when both are handed over from one VM to another.
 *
 * The two VMs belong to two processes in two cgroups, a and b, below one parent.
 * The memory.stat of a cgroup is as of a while ago, so look at it until it says
 * what it should.
 *
 * GMEM_MEMCG_MIB in the environment is the size of the memory, 64 by default.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "gmem_transfer_util.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE	23
#endif

#define KIB(bytes)	((long)((bytes) / 1024))

/* What else a process or a cgroup needs: not exact, and it need not be. */
#define SLACK		SZ_4M

/* Stage-2 tables for what a VM has mapped besides the memory in question. */
#define TABLE_SLACK	SZ_128K

static u64 mem_size = SZ_64M;

/* Cgroups */

static char root_dir[64];

static char *cg_path(const char *dir, const char *file)
{
	static char bufs[4][256];
	static int n;
	char *buf = bufs[n++ % ARRAY_SIZE(bufs)];

	snprintf(buf, sizeof(bufs[0]), "%s/%s", dir, file);
	return buf;
}

static int __cg_write(const char *dir, const char *file, const char *what)
{
	int fd = open(cg_path(dir, file), O_WRONLY);
	int r = -errno;

	if (fd < 0)
		return r;
	r = write(fd, what, strlen(what)) < 0 ? -errno : 0;
	close(fd);
	return r;
}

static void cg_write(const char *dir, const char *file, const char *what)
{
	int r = __cg_write(dir, file, what);

	TEST_ASSERT(!r, "Writing '%s' to %s of %s: %s", what, file, dir, strerror(-r));
}

static void cg_write_bytes(const char *dir, const char *file, u64 bytes)
{
	char buf[32];

	snprintf(buf, sizeof(buf), "%lu", (unsigned long)bytes);
	cg_write(dir, file, buf);
}

/* The value behind @key, or of the whole file if that is NULL; 0 if not there. */
static long cg_read(const char *dir, const char *file, const char *key)
{
	FILE *f = fopen(cg_path(dir, file), "r");
	char name[64];
	long val = 0;

	TEST_ASSERT(f, "Opening %s of %s: %s", file, dir, strerror(errno));
	if (!key) {
		TEST_ASSERT(fscanf(f, "%ld", &val) == 1, "%s of %s is not a number", file, dir);
	} else {
		while (fscanf(f, "%63s %ld", name, &val) == 2) {
			if (!strcmp(name, key))
				break;
			val = 0;
		}
	}
	fclose(f);
	return val;
}

static void cg_mount(void)
{
	char dir[64], type[32];
	FILE *f = fopen("/proc/mounts", "r");

	while (f && fscanf(f, "%*s %63s %31s %*[^\n]", dir, type) == 2) {
		if (!strcmp(type, "cgroup2"))
			snprintf(root_dir, sizeof(root_dir), "%s", dir);
	}
	if (f)
		fclose(f);
	if (root_dir[0])
		return;

	snprintf(root_dir, sizeof(root_dir), "/tmp/gmem_memcg.XXXXXX");
	mkdir("/tmp", 0755);
	if (!mkdtemp(root_dir) || mount("none", root_dir, "cgroup2", 0, NULL))
		root_dir[0] = 0;
}

/*
 * Pages that were added to the LRU a moment ago are in no statistics yet, and a
 * cgroup keeps some pages charged in stock.  Get rid of both.
 */
static void drain(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);

	if (fd < 0)
		return;
	TEST_ASSERT(write(fd, "1", 1) == 1, "drop_caches: %s", strerror(errno));
	close(fd);
}

#define wait_for(cond)								\
({										\
	bool __ok = false;							\
	int __i;								\
										\
	drain();								\
	for (__i = 0; __i < 100 && !__ok; __i++) {				\
		__ok = (cond);							\
		if (!__ok)							\
			usleep(100000);						\
	}									\
	__ok;									\
})

/* Of all that is charged, only the guest's memory is unevictable. */
static long cg_guest(const char *dir)
{
	return cg_read(dir, "memory.stat", "unevictable");
}

static long cg_tables(const char *dir)
{
	return cg_read(dir, "memory.stat", "sec_pagetables");
}

static long cg_current(const char *dir)
{
	return cg_read(dir, "memory.current", NULL);
}

static void assert_guest(const char *dir, u64 bytes)
{
	TEST_ASSERT(wait_for(cg_guest(dir) == (long)bytes),
		    "Wanted %ld KiB of guest memory in %s, have %ld KiB",
		    KIB(bytes), dir, KIB(cg_guest(dir)));
}

/* At least what it takes to map all of the memory. */
static void assert_tables_min(const char *dir)
{
	TEST_ASSERT(wait_for(cg_tables(dir) >= (long)mem_size / 512),
		    "Wanted %ld KiB of page tables in %s, have %ld KiB",
		    KIB(mem_size / 512), dir, KIB(cg_tables(dir)));
}

static void assert_tables_max(const char *dir, u64 bytes)
{
	TEST_ASSERT(wait_for(cg_tables(dir) <= (long)bytes),
		    "Wanted at most %ld KiB of page tables in %s, have %ld KiB",
		    KIB(bytes), dir, KIB(cg_tables(dir)));
}

/* Processes, which do what they are told by way of a socket */

enum cmd {
	CMD_CREATE_SRC,		/* reply: the VM's and the memory's fd */
	CMD_CREATE_DST,		/* with the memory's fd, reply: the VM's fd */
	CMD_TRANSFER,		/* @arg: flags, with the source VM's fd */
	CMD_PRE_FAULT,
	CMD_RUN,
	CMD_PUNCH,		/* @arg: how much, from the start */
	CMD_ALLOCATE,
	CMD_POPULATE,		/* by way of a mapping */
	CMD_UNMAP,
	CMD_JOIN,		/* another cgroup, in @str */
	CMD_NOISE,		/* @arg: on or off */
	CMD_EXIT,
};

struct msg {
	enum cmd cmd;
	u64 arg;
	char str[200];
	int ret;
};

struct actor {
	pid_t pid;
	int sock;
	int vm_fd;
	int gmem_fd;
};

static void send_msg(int sock, struct msg *msg, const int *fds, int nr)
{
	char control[CMSG_SPACE(2 * sizeof(int))] = {};
	struct iovec iov = { .iov_base = msg, .iov_len = sizeof(*msg) };
	struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *cmsg;

	if (nr) {
		hdr.msg_control = control;
		hdr.msg_controllen = CMSG_SPACE(nr * sizeof(int));
		cmsg = CMSG_FIRSTHDR(&hdr);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(nr * sizeof(int));
		memcpy(CMSG_DATA(cmsg), fds, nr * sizeof(int));
	}
	TEST_ASSERT(sendmsg(sock, &hdr, 0) == sizeof(*msg), "sendmsg: %s", strerror(errno));
}

/* Returns the number of fds, -1 if the other side is gone. */
static int recv_msg(int sock, struct msg *msg, int *fds)
{
	char control[CMSG_SPACE(2 * sizeof(int))] = {};
	struct iovec iov = { .iov_base = msg, .iov_len = sizeof(*msg) };
	struct msghdr hdr = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;
	int nr;

	if (recvmsg(sock, &hdr, MSG_CMSG_CLOEXEC) != sizeof(*msg))
		return -1;

	cmsg = CMSG_FIRSTHDR(&hdr);
	if (!cmsg)
		return 0;
	nr = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	memcpy(fds, CMSG_DATA(cmsg), nr * sizeof(int));
	return nr;
}

static bool noise_stop;

/* Allocate and free the memory in all ways there are, and don't mind refusal. */
static void *noise_thread(void *arg)
{
	struct gmem_vm *g = arg;
	u64 *mem = gmem_mmap(g->fd, mem_size);
	unsigned int seed = getpid();
	u64 start, len;

	while (!READ_ONCE(noise_stop)) {
		start = (rand_r(&seed) % (mem_size / SZ_4K)) * SZ_4K;
		len = min_t(u64, (1 + rand_r(&seed) % 64) * SZ_4K, mem_size - start);

		switch (rand_r(&seed) % 3) {
		case 0:
			fallocate(g->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				  start, len);
			break;
		case 1:
			fallocate(g->fd, FALLOC_FL_KEEP_SIZE, start, len);
			break;
		case 2:
			madvise((void *)mem + start, len, MADV_POPULATE_WRITE);
			madvise((void *)mem + start, len, MADV_DONTNEED);
			break;
		}
	}
	kvm_munmap(mem, mem_size);
	return NULL;
}

static void actor_join(const char *dir)
{
	char buf[16];

	snprintf(buf, sizeof(buf), "%d", getpid());
	cg_write(dir, "cgroup.procs", buf);
}

static int actor_errno(int r)
{
	return r < 0 ? -errno : 0;
}

static void actor_main(int sock, const char *dir)
{
	struct gmem_vm g = { .fd = -1 };
	struct gmem_result res;
	pthread_t noise = 0;
	struct msg msg;
	int fds[2], nr;
	u64 *mem = NULL;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (dir)
		actor_join(dir);

	while ((nr = recv_msg(sock, &msg, fds)) >= 0) {
		int reply[2], nr_reply = 0;

		msg.ret = 0;
		switch (msg.cmd) {
		case CMD_CREATE_SRC:
		case CMD_CREATE_DST:
			g = gmem_vm_create(1);
			if (msg.cmd == CMD_CREATE_SRC)
				g.fd = vm_create_guest_memfd(g.vm, mem_size, GMEM_SHARED_FLAGS);
			else
				g.fd = gmem_link(&g, fds[0]);
			gmem_bind(&g, GMEM_SLOT, GMEM_GPA, mem_size, g.fd, 0);
			gmem_guest(&g, 0, GMEM_OP_NOP, 0, 0, 0, 0);
			reply[nr_reply++] = g.vm->fd;
			if (msg.cmd == CMD_CREATE_SRC)
				reply[nr_reply++] = g.fd;
			break;
		case CMD_TRANSFER:
			res = __gmem_transfer_fd(&g, fds[0], msg.arg);
			msg.ret = -res.err;
			msg.arg = res.args.tables;
			break;
		case CMD_PRE_FAULT:
			msg.ret = gmem_pre_fault(&g, GMEM_GPA, mem_size);
			break;
		case CMD_RUN:
			msg.ret = __gmem_guest(&g, 0, GMEM_OP_NOP, 0, 0, 0, 0);
			break;
		case CMD_PUNCH:
			msg.ret = actor_errno(fallocate(g.fd, FALLOC_FL_PUNCH_HOLE |
							FALLOC_FL_KEEP_SIZE, 0, msg.arg));
			break;
		case CMD_ALLOCATE:
			msg.ret = actor_errno(fallocate(g.fd, FALLOC_FL_KEEP_SIZE, 0, mem_size));
			break;
		case CMD_POPULATE:
			if (!mem)
				mem = gmem_mmap(g.fd, mem_size);
			msg.ret = actor_errno(madvise(mem, mem_size, MADV_POPULATE_WRITE));
			break;
		case CMD_UNMAP:
			kvm_munmap(mem, mem_size);
			mem = NULL;
			break;
		case CMD_JOIN:
			actor_join(msg.str);
			break;
		case CMD_NOISE:
			if (noise) {
				WRITE_ONCE(noise_stop, true);
				kvm_pthread_join(noise, NULL);
				noise = 0;
			}
			if (msg.arg) {
				WRITE_ONCE(noise_stop, false);
				kvm_pthread_create(&noise, NULL, noise_thread, &g);
			}
			break;
		case CMD_EXIT:
			send_msg(sock, &msg, NULL, 0);
			_exit(0);
		}
		while (nr)
			close(fds[--nr]);
		send_msg(sock, &msg, reply, nr_reply);
	}
	_exit(0);
}

static struct actor actor_start(const char *dir)
{
	struct actor actor = { .vm_fd = -1, .gmem_fd = -1 };
	int socks[2];

	TEST_ASSERT(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks),
		    "socketpair: %s", strerror(errno));
	actor.pid = fork();
	TEST_ASSERT(actor.pid >= 0, "fork: %s", strerror(errno));
	if (!actor.pid) {
		close(socks[0]);
		actor_main(socks[1], dir);
	}
	close(socks[1]);
	actor.sock = socks[0];
	return actor;
}

static int __actor_do(struct actor *actor, struct msg *msg, int fd)
{
	int fds[2], nr;

	send_msg(actor->sock, msg, &fd, fd >= 0);
	nr = recv_msg(actor->sock, msg, fds);
	TEST_ASSERT(nr >= 0, "The process in charge of command %u died", msg->cmd);
	if (nr > 0)
		actor->vm_fd = fds[0];
	if (nr > 1)
		actor->gmem_fd = fds[1];
	return msg->ret;
}

static int actor_do(struct actor *actor, enum cmd cmd, u64 arg)
{
	struct msg msg = { .cmd = cmd, .arg = arg };

	return __actor_do(actor, &msg, -1);
}

#define actor_must(actor, cmd, arg)						\
do {										\
	int __r = actor_do(actor, cmd, arg);					\
										\
	TEST_ASSERT(!__r, #cmd " failed: %s", strerror(-__r));			\
} while (0)

/* Our references to a VM and its memory must not be the last ones. */
static void actor_close_fds(struct actor *actor)
{
	gmem_close(&actor->vm_fd);
	gmem_close(&actor->gmem_fd);
}

static void actor_end(struct actor *actor)
{
	if (!actor->pid)
		return;
	actor_close_fds(actor);
	kill(actor->pid, SIGKILL);
	waitpid(actor->pid, NULL, 0);
	close(actor->sock);
	actor->pid = 0;
}

/* To the VM of @dst, from the VM of @src */
static int transfer(struct actor *dst, struct actor *src, u32 flags)
{
	struct msg msg = { .cmd = CMD_TRANSFER, .arg = flags };

	return __actor_do(dst, &msg, src->vm_fd);
}

#define must_transfer(dst, src, flags)						\
do {										\
	int __r = transfer(dst, src, flags);					\
										\
	TEST_ASSERT(!__r, "KVM_GMEM_TRANSFER failed: %s", strerror(-__r));	\
} while (0)

static void create_dst(struct actor *dst, struct actor *src)
{
	struct msg msg = { .cmd = CMD_CREATE_DST };

	__actor_do(dst, &msg, src->gmem_fd);
	gmem_close(&src->gmem_fd);
}

static void report(const char *when, const char *dir)
{
	drain();
	sleep(3);
	ksft_print_msg("%-20s %-3s current %8ld unevictable %8ld tables %5ld kernel %6ld KiB\n",
		       when, strrchr(dir, '/') + 1, KIB(cg_current(dir)),
		       KIB(cg_guest(dir)), KIB(cg_tables(dir)),
		       KIB(cg_read(dir, "memory.stat", "kernel")));
}

/* The tests */

FIXTURE(memcg) {
	char p[100], a[104], b[104];
	struct actor src, dst;
};

FIXTURE_SETUP(memcg)
{
	const char *mib = getenv("GMEM_MEMCG_MIB");

	if (mib)
		mem_size = (u64)atol(mib) * SZ_1M;

	if (!root_dir[0] || __cg_write(root_dir, "cgroup.subtree_control", "+memory"))
		SKIP(return, "no memory cgroups");

	snprintf(self->p, sizeof(self->p), "%s/gmem_memcg.%d", root_dir, getpid());
	snprintf(self->a, sizeof(self->a), "%s/a", self->p);
	snprintf(self->b, sizeof(self->b), "%s/b", self->p);
	TEST_ASSERT(!mkdir(self->p, 0755), "mkdir %s: %s", self->p, strerror(errno));
	cg_write(self->p, "cgroup.subtree_control", "+memory");
	TEST_ASSERT(!mkdir(self->a, 0755) && !mkdir(self->b, 0755), "mkdir: %s",
		    strerror(errno));

	self->src = actor_start(self->a);
	self->dst = actor_start(self->b);
	actor_must(&self->src, CMD_CREATE_SRC, 0);
	actor_must(&self->src, CMD_PRE_FAULT, 0);
	create_dst(&self->dst, &self->src);
}

/* The cgroups are gone for good, and nothing is left of what was charged. */
FIXTURE_TEARDOWN(memcg)
{
	bool gone;

	if (!self->p[0])
		return;

	actor_end(&self->src);
	actor_end(&self->dst);
	assert_guest(self->p, 0);
	assert_tables_max(self->p, 0);
	TEST_ASSERT(wait_for((!rmdir(self->a) || errno == ENOENT) &&
			     (!rmdir(self->b) || errno == ENOENT)), "rmdir: %s", strerror(errno));
	gone = wait_for(!cg_read(self->p, "cgroup.stat", "nr_dying_descendants"));
	TEST_ASSERT(gone, "There is a cgroup which doesn't die");
	TEST_ASSERT(wait_for(cg_current(self->p) < SZ_1M),
		    "%ld KiB are still charged", KIB(cg_current(self->p)));
	TEST_ASSERT(!rmdir(self->p), "rmdir: %s", strerror(errno));
}

TEST_F(memcg, charges_follow_the_memory)
{
	report("before", self->a);
	report("before", self->b);
	assert_guest(self->a, mem_size);
	assert_guest(self->b, 0);
	assert_tables_min(self->a);

	must_transfer(&self->dst, &self->src, 0);
	report("after", self->a);
	report("after", self->b);
	assert_guest(self->a, 0);
	assert_guest(self->b, mem_size);
	assert_tables_max(self->a, TABLE_SLACK);
	assert_tables_min(self->b);
	EXPECT_LT(cg_current(self->a), SLACK);
	EXPECT_GE(cg_current(self->b), (long)mem_size);

	actor_must(&self->dst, CMD_RUN, 0);
	actor_end(&self->src);
	report("source has exited", self->a);
	report("source has exited", self->b);
	TEST_ASSERT(wait_for(!rmdir(self->a)), "rmdir: %s", strerror(errno));
	report("a is removed", self->b);
	report("a is removed", self->p);
	EXPECT_TRUE(wait_for(!cg_read(self->p, "cgroup.stat", "nr_dying_descendants")));
	assert_guest(self->b, mem_size);
}

TEST_F(memcg, a_limit_that_is_too_low_refuses)
{
	long before_a, before_b;
	int i;

	assert_guest(self->a, mem_size);
	before_a = cg_current(self->a);
	before_b = cg_current(self->b);
	cg_write_bytes(self->b, "memory.max", mem_size / 2 + before_b);

	for (i = 0; i < 20; i++)
		ASSERT_EQ(transfer(&self->dst, &self->src, 0), -EDQUOT);
	EXPECT_GE(cg_read(self->b, "memory.events", "max"), 20);
	EXPECT_EQ(cg_read(self->b, "memory.events", "oom_kill"), 0);

	assert_guest(self->a, mem_size);
	assert_guest(self->b, 0);
	assert_tables_min(self->a);
	EXPECT_LT(labs(cg_current(self->a) - before_a), SLACK);
	EXPECT_LT(labs(cg_current(self->b) - before_b), SLACK);

	/* Both VMs are as they were: the source has the memory, and can run. */
	actor_must(&self->src, CMD_RUN, 0);
	actor_must(&self->src, CMD_PRE_FAULT, 0);
	EXPECT_EQ(actor_do(&self->dst, CMD_PRE_FAULT, 0), -EPERM);

	cg_write(self->b, "memory.max", "max");
	must_transfer(&self->dst, &self->src, 0);
	assert_guest(self->b, mem_size);
}

TEST_F(memcg, a_dry_run_asks_no_limit)
{
	cg_write_bytes(self->b, "memory.max", mem_size / 2 + cg_current(self->b));
	EXPECT_EQ(transfer(&self->dst, &self->src, KVM_GMEM_TRANSFER_DRY_RUN), 0);
	assert_guest(self->a, mem_size);
	cg_write(self->b, "memory.max", "max");
}

TEST_F(memcg, common_parent_is_not_charged_twice)
{
	long before;

	assert_guest(self->a, mem_size);
	before = cg_current(self->p);
	cg_write_bytes(self->p, "memory.max", before + mem_size / 2);

	must_transfer(&self->dst, &self->src, 0);
	assert_guest(self->b, mem_size);
	EXPECT_LT(labs(cg_current(self->p) - before), SLACK);
	cg_write(self->p, "memory.max", "max");
}

TEST_F(memcg, new_owner_pays_for_what_it_frees_and_allocates)
{
	must_transfer(&self->dst, &self->src, 0);
	actor_must(&self->dst, CMD_PUNCH, mem_size / 2);
	assert_guest(self->b, mem_size / 2);
	assert_guest(self->a, 0);

	actor_must(&self->dst, CMD_ALLOCATE, 0);
	assert_guest(self->b, mem_size);

	actor_must(&self->dst, CMD_PUNCH, mem_size);
	assert_guest(self->b, 0);
	assert_guest(self->p, 0);
}

TEST_F(memcg, going_back_takes_the_charge_along_whatever_the_limit)
{
	assert_guest(self->a, mem_size);
	must_transfer(&self->dst, &self->src, 0);
	assert_guest(self->b, mem_size);

	cg_write_bytes(self->a, "memory.max", cg_current(self->a) + mem_size / 2);
	actor_must(&self->dst, CMD_PRE_FAULT, 0);
	must_transfer(&self->src, &self->dst, 0);
	assert_guest(self->a, mem_size);
	assert_guest(self->b, 0);
	assert_tables_min(self->a);
	assert_tables_max(self->b, TABLE_SLACK);
	cg_write(self->a, "memory.max", "max");
	actor_must(&self->src, CMD_RUN, 0);
}

TEST_F(memcg, death_of_the_destination_gives_the_charge_back)
{
	must_transfer(&self->dst, &self->src, 0);
	assert_guest(self->b, mem_size);

	actor_end(&self->dst);
	assert_guest(self->a, mem_size);
	assert_guest(self->b, 0);
	actor_must(&self->src, CMD_PRE_FAULT, 0);
	assert_tables_min(self->a);
	actor_must(&self->src, CMD_RUN, 0);
}

TEST_F(memcg, without_the_tables_the_memory_is_charged_alone)
{
	assert_guest(self->a, mem_size);
	must_transfer(&self->dst, &self->src, KVM_GMEM_TRANSFER_NO_STAGE2);
	assert_guest(self->b, mem_size);
	assert_tables_max(self->a, TABLE_SLACK);
	assert_tables_max(self->b, TABLE_SLACK);
	actor_must(&self->dst, CMD_PRE_FAULT, 0);
	assert_tables_min(self->b);
}

TEST_F(memcg, userspace_mappings_are_counted_where_the_memory_is)
{
	actor_must(&self->src, CMD_POPULATE, 0);
	EXPECT_TRUE(wait_for(cg_read(self->a, "memory.stat", "file_mapped") >= (long)mem_size));

	must_transfer(&self->dst, &self->src, 0);
	EXPECT_TRUE(wait_for(cg_read(self->b, "memory.stat", "file_mapped") >= (long)mem_size));
	EXPECT_TRUE(wait_for(cg_read(self->a, "memory.stat", "file_mapped") < SLACK));

	actor_must(&self->src, CMD_UNMAP, 0);
	EXPECT_TRUE(wait_for(cg_read(self->b, "memory.stat", "file_mapped") < SLACK));
}

TEST_F(memcg, same_cgroup_changes_nothing)
{
	struct msg msg = { .cmd = CMD_JOIN };

	snprintf(msg.str, sizeof(msg.str), "%s", self->a);
	__actor_do(&self->dst, &msg, -1);
	assert_guest(self->a, mem_size);
	cg_write_bytes(self->a, "memory.max", cg_current(self->a) + SLACK);
	must_transfer(&self->dst, &self->src, 0);
	assert_guest(self->a, mem_size);
	assert_guest(self->p, mem_size);
	cg_write(self->a, "memory.max", "max");
}

TEST_F(memcg, a_cgroup_that_is_gone_is_no_obstacle)
{
	struct msg msg = { .cmd = CMD_JOIN };
	char c[112];

	/* The source moves on, what is charged stays, and becomes the parent's. */
	assert_guest(self->a, mem_size);
	snprintf(c, sizeof(c), "%s/c", self->p);
	TEST_ASSERT(!mkdir(c, 0755), "mkdir: %s", strerror(errno));
	snprintf(msg.str, sizeof(msg.str), "%s", c);
	__actor_do(&self->src, &msg, -1);
	TEST_ASSERT(wait_for(!rmdir(self->a)), "rmdir: %s", strerror(errno));
	assert_guest(self->p, mem_size);

	must_transfer(&self->dst, &self->src, 0);
	assert_guest(self->b, mem_size);
	assert_guest(c, 0);
	assert_guest(self->p, mem_size);

	actor_end(&self->src);
	TEST_ASSERT(wait_for(!rmdir(c)), "rmdir: %s", strerror(errno));
}

TEST_F(memcg, from_the_root_cgroup_and_back)
{
	struct actor src = actor_start(NULL), dst = actor_start(self->b);
	long before;

	actor_must(&src, CMD_CREATE_SRC, 0);
	actor_must(&src, CMD_PRE_FAULT, 0);
	create_dst(&dst, &src);
	assert_guest(self->b, 0);
	before = cg_current(self->b);

	must_transfer(&dst, &src, 0);
	assert_guest(self->b, mem_size);
	EXPECT_LT(labs(cg_current(self->b) - before - (long)mem_size), SLACK);
	must_transfer(&src, &dst, 0);
	assert_guest(self->b, 0);
	EXPECT_LT(labs(cg_current(self->b) - before), SLACK);
	must_transfer(&dst, &src, 0);
	assert_guest(self->b, mem_size);

	actor_end(&src);
	actor_end(&dst);
	assert_guest(self->b, 0);
}

TEST_F(memcg, counts_are_exact_in_spite_of_noise)
{
	struct actor *src = &self->src, *dst = &self->dst;
	struct actor other_a = actor_start(self->a), other_b = actor_start(self->b);
	time_t end;
	int i;

	/* A third and fourth VM, which have nothing to do with it. */
	actor_must(&other_a, CMD_CREATE_SRC, 0);
	actor_must(&other_b, CMD_CREATE_SRC, 0);
	actor_must(&other_a, CMD_NOISE, 1);
	actor_must(&other_b, CMD_NOISE, 1);
	actor_must(src, CMD_NOISE, 1);
	actor_must(dst, CMD_NOISE, 1);

	/* Not all of it where everything is slow. */
	end = time(NULL) + 30;
	for (i = 0; i < 50 && time(NULL) < end; i++) {
		must_transfer(dst, src, i % 3 ? 0 : KVM_GMEM_TRANSFER_NO_STAGE2);
		actor_must(dst, CMD_PRE_FAULT, 0);
		must_transfer(src, dst, i % 5 ? 0 : KVM_GMEM_TRANSFER_NO_STAGE2);
		actor_must(src, CMD_PRE_FAULT, 0);
	}
	must_transfer(dst, src, 0);
	ksft_print_msg("%d rounds\n", i);

	actor_must(src, CMD_NOISE, 0);
	actor_must(dst, CMD_NOISE, 0);
	actor_end(&other_a);
	actor_end(&other_b);

	/* What was touched in just that moment may be charged to who touched it. */
	TEST_ASSERT(wait_for(cg_guest(self->a) < SZ_1M), "%ld KiB have stayed in a",
		    KIB(cg_guest(self->a)));

	actor_must(dst, CMD_PUNCH, mem_size);
	assert_guest(self->a, 0);
	assert_guest(self->b, 0);
	actor_must(dst, CMD_ALLOCATE, 0);
	assert_guest(self->b, mem_size);
	assert_guest(self->a, 0);
}

/* Without it, all charges stay where they are.  There is no other way to tell. */
static bool charges_can_move(void)
{
	FILE *f = fopen("/proc/kallsyms", "r");
	char name[256];
	bool found = false;

	if (!f)
		return true;
	while (!found && fscanf(f, "%*s %*s %255s%*[^\n]", name) == 1)
		found = !strcmp(name, "obj_cgroup_pool_commit_move");
	fclose(f);
	return found;
}

int main(int argc, char *argv[])
{
	gmem_test_require();
	TEST_REQUIRE(!geteuid());
	TEST_REQUIRE(charges_can_move());
	cg_mount();

	return test_harness_run(argc, argv);
}
