/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the daemon counts of upgrades that have ended. */
#include "metrics.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#include <cmocka.h>

static void end(struct metrics *m, int outcome, int tier, uint64_t blackout_us)
{
	Upgraded__V1__PhaseTime freeze = UPGRADED__V1__PHASE_TIME__INIT, unknown = freeze;
	Upgraded__V1__PhaseTime *phases[] = { &freeze, &unknown };
	Report report = UPGRADED__V1__REPORT__INIT;

	freeze.phase = PHASE(FREEZE);
	freeze.duration_us = 7;
	unknown.phase = 99;
	report.outcome = (Upgraded__V1__Outcome)outcome;
	report.tier = (Upgraded__V1__Tier)tier;
	report.blackout_us = blackout_us;
	report.phases = phases;
	report.n_phases = ARRAY_SIZE(phases);
	metrics_report(m, &report);
}

static uint64_t count(const struct metrics *m, int outcome, int tier)
{
	for (size_t i = 0; i < m->pb.n_upgrades; i++)
		if ((int)m->pb.upgrades[i]->outcome == outcome &&
		    (int)m->pb.upgrades[i]->tier == tier)
			return m->pb.upgrades[i]->upgrades;
	fail_msg("nothing is counted of outcome %d in tier %d", outcome, tier);
	return 0;
}

static void each_outcome_is_counted_in_its_tier(void **state)
{
	struct metrics m;
	uint64_t all = 0;

	metrics_init(&m);
	assert_true(m.pb.started_at_us > 0);
	end(&m, OUTCOME(COMMITTED), UPGRADED__V1__TIER__TIER_STAGE2, 1000);
	end(&m, OUTCOME(COMMITTED), UPGRADED__V1__TIER__TIER_STAGE2, 1000);
	end(&m, OUTCOME(LOST), UPGRADED__V1__TIER__TIER_MEMFD, 1000);
	end(&m, OUTCOME(REFUSED), UPGRADED__V1__TIER__TIER_UNSPECIFIED, 0);
	end(&m, 77, 77, 0);
	assert_int_equal(count(&m, OUTCOME(COMMITTED), UPGRADED__V1__TIER__TIER_STAGE2), 2);
	assert_int_equal(count(&m, OUTCOME(LOST), UPGRADED__V1__TIER__TIER_MEMFD), 1);
	assert_int_equal(count(&m, OUTCOME(REFUSED), UPGRADED__V1__TIER__TIER_UNSPECIFIED), 1);
	for (size_t i = 0; i < m.pb.n_upgrades; i++)
		all += m.pb.upgrades[i]->upgrades;
	assert_int_equal(all, 4);
	assert_int_equal(m.pb.phases[PHASE(FREEZE) - 1]->count, 5);
	assert_int_equal(m.pb.phases[PHASE(FREEZE) - 1]->sum_us, 35);
	assert_int_equal(m.pb.phases[PHASE(LOAD) - 1]->count, 0);
}

static void blackout_is_a_histogram_of_what_was_committed(void **state)
{
	const Upgraded__V1__Histogram *h;
	struct metrics m;

	metrics_init(&m);
	h = m.pb.blackout;
	end(&m, OUTCOME(COMMITTED), UPGRADED__V1__TIER__TIER_GMEM, h->up_to_us[0]);
	end(&m, OUTCOME(COMMITTED), UPGRADED__V1__TIER__TIER_GMEM, h->up_to_us[0] + 1);
	end(&m, OUTCOME(COMMITTED), UPGRADED__V1__TIER__TIER_GMEM, UINT32_MAX);
	end(&m, OUTCOME(ROLLED_BACK), UPGRADED__V1__TIER__TIER_GMEM, 1);
	assert_int_equal(h->counts[0], 1);
	assert_int_equal(h->counts[1], 2);
	assert_int_equal(h->counts[h->n_counts - 1], 2);
	assert_int_equal(h->count, 3);
	assert_int_equal(h->sum_us, 2 * h->up_to_us[0] + 1 + UINT32_MAX);
	for (size_t i = 1; i < h->n_up_to_us; i++)
		assert_true(h->up_to_us[i] > h->up_to_us[i - 1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_outcome_is_counted_in_its_tier),
		cmocka_unit_test(blackout_is_a_histogram_of_what_was_committed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
