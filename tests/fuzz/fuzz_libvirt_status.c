/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fuzzes the status XML of a domain. What must hold of one that is taken: what is
 * written is taken as well and says the same, but for what was changed on purpose.
 */
#include "manager/libvirt_status.h"

#include "cleanup.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define _cleanup_status_ __attribute__((cleanup(libvirt_status_freep)))

static void must(bool holds)
{
	if (!holds)
		abort();
}

static bool same(const char *a, const char *b)
{
	return a == b || (a && b && !strcmp(a, b));
}

static void move(struct libvirt_status *s)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	_cleanup_free_ struct libvirt_vcpu *v = calloc(s->n_vcpus, sizeof(*v));

	for (size_t i = 0; i < s->n_vcpus; i++)
		v[s->n_vcpus - 1 - i] = (struct libvirt_vcpu){ s->vcpus[i].id, (pid_t)(1000 + i) };
	must(libvirt_status_move(s, 77, v, s->n_vcpus, "/opt/a & b/<qemu>", false, &err) == 0);
	must(libvirt_status_move(s, 78, v, s->n_vcpus - 1, NULL, false, &err) == -EINVAL);
}

static void again(const struct libvirt_status *s)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	_cleanup_status_ struct libvirt_status *t = NULL;
	_cleanup_free_ char *text = NULL;
	size_t len;

	must(libvirt_status_format(s, &text, &len) == 0);
	must(libvirt_status_parse(text, len, &t, &err) == 0);
	must(t->pid == s->pid && t->n_vcpus == s->n_vcpus);
	for (size_t i = 0; i < s->n_vcpus; i++)
		must(t->vcpus[i].id == s->vcpus[i].id && t->vcpus[i].tid == s->vcpus[i].tid);
	must(same(t->monitor, s->monitor) && same(t->emulator, s->emulator));
	must(same(t->state, s->state) && same(t->reason, s->reason));
	must(same(t->name, s->name) && same(t->uuid, s->uuid) && same(t->lib_dir, s->lib_dir));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	_cleanup_status_ struct libvirt_status *s = NULL;
	struct findings findings = FINDINGS_INIT;

	if (libvirt_status_parse((const char *)data, size, &s, &err) < 0) {
		must(err.text && err.text[0]);
		return 0;
	}
	must(libvirt_status_check(s, &findings) == 0);
	findings_clear(&findings);
	again(s);
	move(s);
	must(s->pid == 77);
	again(s);
	return 0;
}
