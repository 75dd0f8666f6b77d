/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which VMs a fleet's upgrade is about. One that runs the target's binary already is
 * left alone: so whoever was interrupted types the same command once more. Pure.
 */
#include "fleet.h"

#include <fnmatch.h>
#include <string.h>

static bool is_pattern(const char *name)
{
	return name[strcspn(name, "*?[")];
}

static bool matches(const struct fleet_options *o, const char *name)
{
	for (size_t i = 0; i < o->n_patterns; i++)
		if (fnmatch(o->patterns[i], name, 0) == 0)
			return true;
	return false;
}

static bool named(const struct fleet_options *o, const char *name)
{
	for (size_t i = 0; i < o->n_patterns; i++)
		if (!strcmp(o->patterns[i], name))
			return true;
	return false;
}

static bool is_chosen(const struct fleet_options *o, const Upgraded__V1__Vm *vm)
{
	if (o->n_patterns && !matches(o, vm->name))
		return false;
	if (o->outdated && !vm->outdated)
		return false;
	/* One that has ended fails only whoever named it. */
	return vm->alive || named(o, vm->name);
}

static bool is_up_to_date(const char *binary, const Upgraded__V1__Vm *vm)
{
	return !vm->outdated && (!binary || !strcmp(binary, vm->binary));
}

/* Every word must be somebody's name, or match one. */
static int check_patterns(const struct fleet_options *o, const Upgraded__V1__VmList *list,
			  struct error *err)
{
	for (size_t i = 0; i < o->n_patterns; i++) {
		const char *p = o->patterns[i];
		size_t k = 0;

		while (k < list->n_vms && fnmatch(p, list->vms[k]->name, 0) != 0)
			k++;
		if (k < list->n_vms)
			continue;
		error_set(err, -ENOENT,
			  is_pattern(p) ? "no VM's name matches %s" : "no VM is called %s", p);
		return error_hint(err, "upgradectl list");
	}
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct member *)a)->vm->name, ((const struct member *)b)->vm->name);
}

int fleet_choose(const struct fleet_options *o, const char *binary,
		 const Upgraded__V1__VmList *list, struct member **ret_members, size_t *ret_n,
		 struct error *err)
{
	struct member *members;
	size_t n = 0;
	int r;

	r = check_patterns(o, list, err);
	if (r < 0)
		return r;
	members = calloc(list->n_vms + 1, sizeof(*members));
	if (!members)
		return -ENOMEM;
	for (size_t i = 0; i < list->n_vms; i++) {
		Upgraded__V1__Vm *vm = list->vms[i];

		if (!is_chosen(o, vm))
			continue;
		members[n++] = (struct member){
			.vm = vm,
			.state = !o->again && is_up_to_date(binary, vm) ? MEMBER_UP_TO_DATE
									: MEMBER_WAITS,
			.client = CLIENT_INIT,
		};
	}
	qsort(members, n, sizeof(*members), by_name);
	*ret_members = members;
	*ret_n = n;
	return 0;
}

void fleet_free(struct member *members, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		client_close(&members[i].client);
		envelope_freep(&members[i].last);
		error_clear(&members[i].err);
	}
	free(members);
}
