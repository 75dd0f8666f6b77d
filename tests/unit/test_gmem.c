/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which tier an upgrade uses, and what becomes of the guest's memory, against a
 * scripted QEMU. What the kernel really does is for the emulated host to show.
 */
#include "gmem.h"
#include "qmp_peer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#define TIER(t) UPGRADED__V1__TIER__TIER_##t
#define ANSWER(json) "{\"return\": " json ", \"id\": 2}"

static void read_as(const char *answer, struct gmem *g)
{
	const struct step steps[] = {
		{ NULL, GREETING }, { "qmp_capabilities", CAPS }, { "query-gmem", answer }, { 0 }
	};
	struct peer p;

	*g = (struct gmem){ 0 };
	open_peer(&p, play_steps, steps);
	assert_int_equal(p.r, 0);
	assert_int_equal(gmem_read(g, p.q, &p.err), 0);
	close_peer(&p);
}

static Upgraded__V1__Tier plan(const struct gmem *g, const char *code)
{
	struct findings f = { 0 };
	Upgraded__V1__Tier tier;

	assert_int_equal(gmem_plan(g, &tier, &f), 0);
	assert_int_equal(f.n, code ? 1 : 0);
	if (code)
		assert_string_equal(f.v[0]->code, code);
	findings_clear(&f);
	return tier;
}

static void stock_qemu_is_tier_memfd(void **state)
{
	struct gmem g;

	(void)state;
	read_as("{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}, \"id\": 2}", &g);
	assert_false(g.source);
	assert_int_equal(plan(&g, "tier.memfd"), TIER(MEMFD));
	read_as(ANSWER("{\"state\": \"none\", \"transfer\": true}"), &g);
	g.target = true;
	assert_int_equal(plan(&g, "tier.memfd"), TIER(MEMFD));
}

static void guest_memfd_needs_kernel_and_target_for_stage2(void **state)
{
	struct gmem g;

	(void)state;
	read_as(ANSWER("{\"state\": \"owner\", \"transfer\": true}"), &g);
	assert_int_equal(plan(&g, "tier.target"), TIER(GMEM));
	g.target = true;
	assert_int_equal(plan(&g, NULL), TIER(STAGE2));
	g.no_stage2 = true;
	assert_int_equal(plan(&g, "tier.no-stage2"), TIER(GMEM));
	read_as(ANSWER("{\"state\": \"owner\", \"transfer\": false}"), &g);
	g.target = true;
	assert_int_equal(plan(&g, "tier.kernel"), TIER(GMEM));
	/* KVM uses it by way of QEMU's mapping: there is nothing to hand over. */
	read_as(ANSWER("{\"state\": \"user\", \"transfer\": true}"), &g);
	g.target = true;
	assert_int_equal(plan(&g, "tier.kernel"), TIER(GMEM));
}

static int transfer_as(const char *asked, const char *answer, bool dry_run, struct gmem as,
		       struct gmem *g, Upgraded__V1__Tier *tier, struct findings *f)
{
	const struct step steps[] = {
		{ NULL, GREETING }, { "qmp_capabilities", CAPS }, { asked, answer }, { 0 }
	};
	struct peer p;
	int r;

	*g = as;
	*f = (struct findings){ 0 };
	*tier = as.no_stage2 ? TIER(GMEM) : TIER(STAGE2);
	open_peer(&p, play_steps, steps);
	assert_int_equal(p.r, 0);
	r = dry_run ? gmem_verify(g, p.q, tier, f, &p.err) : gmem_switch(g, p.q, tier, f, &p.err);
	close_peer(&p);
	return r;
}

static int transfer(const char *answer, bool dry_run, struct gmem *g, Upgraded__V1__Tier *tier,
		    struct findings *f)
{
	return transfer_as(dry_run ? "\"dry-run\":true,\"stage2\":true"
				   : "\"dry-run\":false,\"stage2\":true",
			   answer, dry_run,
			   (struct gmem){ .source = true, .kernel = true, .target = true }, g, tier,
			   f);
}

static void without_stage2_the_kernel_still_enforces_one_runner(void **state)
{
	Upgraded__V1__Tier tier;
	struct findings f;
	struct gmem g;

	(void)state;
	assert_int_equal(transfer_as("\"dry-run\":false,\"stage2\":false",
				     ANSWER("{\"tier\": \"ownership\"}"), false,
				     (struct gmem){ .source = true,
						    .kernel = true,
						    .target = true,
						    .no_stage2 = true },
				     &g, &tier, &f),
			 0);
	assert_int_equal(tier, TIER(GMEM));
	assert_true(g.enforced);
	assert_int_equal(f.n, 0);
	findings_clear(&f);
	gmem_clear(&g);
}

static void dry_run_names_what_stays_behind(void **state)
{
	Upgraded__V1__Tier tier;
	struct findings f;
	struct gmem g;

	(void)state;
	assert_int_equal(transfer(ANSWER("{\"tier\": \"stage2\", \"dry-run\": true, \"nr-slots\": 2, "
					 "\"nr-matched\": 1, \"tables\": 0, \"zapped\": 0, "
					 "\"ioctl-ns\": 7, \"attempts\": 1, \"slots\": ["
					 "{\"slot\": 0, \"gpa\": 0, \"size\": 655360, "
					 "\"verdict\": \"match\"}, {\"slot\": 65539, \"gpa\": "
					 "4294967296, \"size\": 1048576, \"verdict\": \"size\"}]}"),
				  true, &g, &tier, &f),
			 0);
	assert_int_equal(tier, TIER(STAGE2));
	assert_false(g.enforced);
	assert_true(g.handover->dry_run);
	assert_int_equal(g.handover->n_verdicts, 2);
	assert_int_equal(f.n, 1);
	assert_string_equal(f.v[0]->subject, "memory slot 3");
	assert_non_null(strstr(f.v[0]->text, "1 MiB at 0x100000000"));
	findings_clear(&f);
	gmem_clear(&g);
}

static void transfer_says_whether_the_kernel_enforces_one_runner(void **state)
{
	static const struct {
		const char *tier;
		Upgraded__V1__Tier got;
		bool enforced;
		size_t findings;
	} cases[] = { { "stage2", TIER(STAGE2), true, 0 },
		      { "ownership", TIER(GMEM), true, 1 },
		      { "gmem", TIER(GMEM), false, 1 },
		      { "something new", TIER(GMEM), false, 1 } };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		Upgraded__V1__Tier tier;
		struct findings f;
		struct gmem g;
		char answer[256];

		snprintf(answer, sizeof(answer),
			 ANSWER("{\"tier\": \"%s\", \"dry-run\": false, \"nr-slots\": 2, "
				"\"nr-matched\": 2, \"tables\": 35, \"zapped\": 16, \"error\": \"no\"}"),
			 cases[i].tier);
		assert_int_equal(transfer(answer, false, &g, &tier, &f), 0);
		assert_int_equal(tier, cases[i].got);
		assert_int_equal(g.enforced, cases[i].enforced);
		assert_int_equal(f.n, cases[i].findings);
		assert_int_equal(g.handover->tables, 35);
		findings_clear(&f);
		gmem_clear(&g);
	}
}

static void refused_transfer_fails_the_upgrade(void **state)
{
	Upgraded__V1__Tier tier;
	struct findings f;
	struct gmem g;

	(void)state;
	assert_int_equal(transfer("{\"error\": {\"class\": \"GenericError\", \"desc\": \"busy\"}, "
				  "\"id\": 2}", false, &g, &tier, &f), -EREMOTEIO);
	assert_false(g.enforced);
	findings_clear(&f);
	gmem_clear(&g);
}

static void nonsense_is_taken_for_nothing(void **state)
{
	Upgraded__V1__Tier tier;
	struct findings f;
	struct gmem g;

	(void)state;
	assert_int_equal(transfer(ANSWER("{\"tier\": 7, \"slots\": [3, null, {\"verdict\": []}]}"),
				  true, &g, &tier, &f), 0);
	assert_int_equal(tier, TIER(GMEM));
	assert_int_equal(f.n, 1);
	findings_clear(&f);
	gmem_clear(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stock_qemu_is_tier_memfd),
		cmocka_unit_test(guest_memfd_needs_kernel_and_target_for_stage2),
		cmocka_unit_test(dry_run_names_what_stays_behind),
		cmocka_unit_test(without_stage2_the_kernel_still_enforces_one_runner),
		cmocka_unit_test(transfer_says_whether_the_kernel_enforces_one_runner),
		cmocka_unit_test(refused_transfer_fails_the_upgrade),
		cmocka_unit_test(nonsense_is_taken_for_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
