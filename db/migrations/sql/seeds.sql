-- Seeds, safe to run again: `settle migrate` runs this file every time, so that it also restores missing rows.

INSERT INTO users (id, wallet_address) VALUES ('cogni_system_principal', NULL) ON CONFLICT (id) DO NOTHING;

INSERT INTO billing_accounts (id, owner_user_id, balance_credits, is_system_tenant)
VALUES ('cogni_system', 'cogni_system_principal', 0, true)
ON CONFLICT (id) DO UPDATE SET is_system_tenant = true WHERE NOT billing_accounts.is_system_tenant;

INSERT INTO virtual_keys (billing_account_id, label, is_default) VALUES ('cogni_system', 'Default', true)
ON CONFLICT (billing_account_id) WHERE is_default DO NOTHING;

INSERT INTO ledger_accounts (code, name, type, normal_side) VALUES
    ('cash:usdc', 'USDC in the treasury', 'asset', 'debit'),
    ('cash:usdc:deposits', 'USDC at deposit addresses', 'asset', 'debit'),
    ('expense:platform_revenue_share', 'Credits minted for the system tenant', 'expense', 'debit'),
    ('revenue:usage', 'Credits spent on usage', 'revenue', 'credit'),
    ('expense:providers', 'What providers take for calls that are charged for', 'expense', 'debit'),
    ('expense:absorbed', 'What providers take and no price is charged for', 'expense', 'debit'),
    ('payable:providers', 'Owed to providers', 'liability', 'credit')
ON CONFLICT (code) DO NOTHING;
