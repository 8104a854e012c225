"""The scenes by name: what a run may be asked for."""

from functools import partial
from typing import Final

from tests.faults.suite import fleet_faults
from tests.faults.suite import single_faults as alone_faults
from tests.faults.suite.fleet import open_fleet
from tests.faults.suite.run import Scene
from tests.faults.suite.single import open_alone
from tests.faults.suite.windows import plan_stock_windows

ALONE: Final = Scene("the run", open_alone, alone_faults.FAULTS)
FLEET: Final = Scene("the fleet's run", open_fleet, fleet_faults.FAULTS)
ROLL: Final = Scene(
    "the restart", partial(open_fleet, plan=plan_stock_windows), fleet_faults.ROLLS
)
SCENES: Final = {"alone": ALONE, "fleet": FLEET, "roll": ROLL}
