"""``python -m sb3_bn_ddpg``: the same as ``bn-ddpg``."""

from sb3_bn_ddpg.cli import main

if __name__ == "__main__":
    main()
