"""The scenes by name: what a run may be asked for."""

from functools import partial
from typing import Final

from tests.faults.suite import fleet_faults, single_faults
from tests.faults.suite.fleet import open_fleet
from tests.faults.suite.run import Scenario
from tests.faults.suite.single import open_single
from tests.faults.suite.windows import plan_stock_windows

SINGLE: Final = Scenario("the run", open_single, single_faults.FAULTS)
FLEET: Final = Scenario("the fleet's run", open_fleet, fleet_faults.FAULTS)
ROLL: Final = Scenario(
    "the restart", partial(open_fleet, plan=plan_stock_windows), fleet_faults.ROLLS
)
SCENARIOS: Final = {"single": SINGLE, "fleet": FLEET, "roll": ROLL}
