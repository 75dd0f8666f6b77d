/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "systemd.h"

#include "manager.h"

struct systemd {
	struct context *ctx;
};

static void nop_commit(struct context *ctx, struct vm *vm, pid_t source, pid_t target)
{
}
static void nop_done(struct context *ctx, struct vm *vm, const Report *report)
{
}
static void nop_gone(struct context *ctx, struct vm *vm)
{
}
const struct manager_driver manager_systemd = { "systemd", nop_commit, nop_done, nop_gone };

int systemd_new(struct context *ctx, struct systemd **ret_systemd, struct error *err)
{
	*ret_systemd = calloc(1, sizeof(**ret_systemd));
	return *ret_systemd ? 0 : -ENOMEM;
}

int systemd_run(struct systemd *s, const struct requester *from,
		const Upgraded__V1__RunRequest *request, struct error *err)
{
	return error_set(err, -EOPNOTSUPP, "not yet");
}

void systemd_freep(struct systemd **s)
{
	free(*s);
	*s = NULL;
}
